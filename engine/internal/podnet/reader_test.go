// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/tailscale/wireguard-go/tun"
	"golang.org/x/sys/unix"
)

func isTCPOrUDP(packet []byte) bool {
	proto := packet[9]
	if packet[0]>>4 == 6 {
		proto = packet[6]
	}
	return proto == unix.IPPROTO_TCP || proto == unix.IPPROTO_UDP
}

// What two devices hand each other arrives as it was sent, uncut.
func TestDirect(t *testing.T) {
	a, b := newTestPod(t, 1), newTestPod(t, 2)
	w := &wire{direct: true}
	w.start(t, a, b)
	const bytesEachWay = 16 << 20
	for _, addr := range []netip.Addr{b.v4, b.v6} {
		transfer(t, a, b, addr, bytesEachWay)
		server := b.listenUDP(addr)
		defer server.Close()
		go echoUDP(server)
		client := a.dialUDP(server.LocalAddr())
		defer client.Close()
		for _, size := range []int{1, 511, 1200, 3000, 20000} { // the last two in fragments
			t.Run(fmt.Sprintf("%v/%d", addr, size), func(t *testing.T) { echoOne(t, client, size) })
		}
		t.Run(fmt.Sprintf("%v/burst", addr), func(t *testing.T) { echoBurst(t, client, 1000, 50) })
	}
	w.check(t)
	if w.big.Load() == 0 {
		t.Error("no frame was longer than the MTU")
	}
	if kernelAtLeast(6, 9) && w.missed.Load() > 0 {
		t.Errorf("%d packets went the long way", w.missed.Load())
	}
	for i, d := range w.devices {
		other := w.devices[1-i]
		out, in := d.DirectOut.Bytes.Load(), other.DirectIn.Bytes.Load()
		if out < 2*bytesEachWay || out != in || d.DirectOut.Packets.Load() < out/MTU {
			t.Errorf("device %d has sent %d bytes in %d packets, the other has received %d",
				i, out, d.DirectOut.Packets.Load(), in)
		}
	}
}

// A device that has ended loses what it is handed, and hurts nobody else.
func TestDirectToClosed(t *testing.T) {
	a, b := newTestPod(t, 1), newTestPod(t, 2)
	da, db := mustOpen(t, a.link), mustOpen(t, b.link)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	da.Divert(func(p []byte) *Device {
		if p[0]>>4 == 4 && p[9] == unix.IPPROTO_UDP && p[19] == 2 {
			return db
		}
		return nil
	})
	client := a.dialUDP(net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.v4, 9)))
	defer client.Close()
	if _, err := client.Write([]byte("lost")); err != nil {
		t.Fatal(err)
	}
	say(t, a, "heard")
	hear(t, da, "heard")
}

// Frames that come while nobody reads are read in order, as many at a time as find
// room, and none is lost for want of it.
func TestReadAhead(t *testing.T) {
	d, write := pipedDevice(t)
	var want [][]byte
	for i := range 3 * readAhead {
		p := packetSpec{udp: true, port: uint16(i), payload: 1000 + i}.build()
		frame := ethernetFrame(unix.ETH_P_IP, vnetHdr{}, p)
		pieces := [][]byte{p}
		if i%readAhead == readAhead/2 {
			frame, pieces = bigFrame(t, uint16(i))
		}
		if err := write(frame); err != nil {
			t.Fatal(err)
		}
		want = append(want, pieces...)
	}
	b := newBatch()
	var got [][]byte
	reads := 0
	for ; len(got) < len(want); reads++ {
		packets, err := b.read(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range packets {
			got = append(got, bytes.Clone(p))
		}
		checkSpacing(t, b, len(packets))
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("packet %d of %d differs", i, len(want))
		}
	}
	if n := len(want); reads > n/20 {
		t.Errorf("%d packets took %d reads", n, reads)
	}
	if d.Dropped.Load() != 0 {
		t.Errorf("%d frames were dropped", d.Dropped.Load())
	}
}

// bigFrame returns a frame of nearly 64 KB, and the packets to be made of it.
func bigFrame(t *testing.T, port uint16) (frame []byte, pieces [][]byte) {
	t.Helper()
	p := packetSpec{port: port, payload: 60000}.build()
	h := vnetHdr{needsCsum: true, gsoType: unix.VIRTIO_NET_HDR_GSO_TCPV4, gsoSize: 1200, csumStart: 20, csumOffset: tcpCsumOffset}
	out, err := newBatch().split(h, bytes.Clone(p))
	if err != nil {
		t.Fatal(err)
	}
	for _, piece := range out {
		pieces = append(pieces, bytes.Clone(piece))
	}
	return ethernetFrame(unix.ETH_P_IP, h, p), pieces
}

// checkSpacing checks that nothing of a batch is in the space that wireguard-go
// writes to, around each packet.
func checkSpacing(t *testing.T, b batch, n int) {
	t.Helper()
	end := 0
	for i, p := range b.packets[:n] {
		if p.Offset-end < tun.ReadPacketSpacing {
			t.Fatalf("packet %d begins %d bytes after the one before", i, p.Offset-end)
		}
		end = p.Offset + p.Size
	}
	if len(b.slab)-end < tun.ReadPacketSpacing {
		t.Fatalf("the last packet ends %d bytes before the slab does", len(b.slab)-end)
	}
}
