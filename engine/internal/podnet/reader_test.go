// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/tailscale/wireguard-go/tun"
	"golang.org/x/sys/unix"
)

func isTCPOrUDP(packet []byte) bool {
	proto := transportOf(packet)
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
		// A frame may be under way, or lost: a link that has no room for it loses it.
		if out < 2*bytesEachWay || in > out || in < out-out/100 || d.DirectOut.Packets.Load() < out/MTU {
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

// remotePort is that of packets which no test has go directly.
const remotePort = 9

// toOther has all packets but those of remotePort go to the other device.
func toOther(other *Device) func([]byte) *Device {
	return func(p []byte) *Device {
		if binary.BigEndian.Uint16(p[20:]) == remotePort {
			return nil
		}
		return other
	}
}

func udpFrame(port uint16) []byte {
	return ethernetFrame(unix.ETH_P_IP, vnetHdr{}, packetSpec{udp: true, port: port, payload: 1000}.build())
}

// A pod that takes nothing loses what others send it. It holds nobody up: neither
// those who send, nor what they send elsewhere.
func TestDirectNeverWaits(t *testing.T) {
	d, write := pipedDevice(t)
	stuck, _ := pipedDevice(t) // nobody reads its other end
	d.Divert(toOther(stuck))
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := newBatch()
		for range 200 {
			for _, port := range []uint16{remotePort, 1, 2, 3, 4, 5, 6, 7, 8} {
				if err := write(udpFrame(port)); err != nil {
					t.Error(err)
					return
				}
			}
			if packets, err := b.read(d); err != nil || len(packets) != 1 {
				t.Errorf("read %d packets, want 1: %v", len(packets), err)
				return
			}
		}
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		d.Close()
		t.Fatal("a device that takes no frames holds up the one that sends")
	}
	if out, in := d.DirectOut.Packets.Load(), stuck.DirectIn.Packets.Load(); out != 200*8 || in == 0 || in >= out {
		t.Errorf("of %d packets %d have arrived", out, in)
	}
}

// What goes to other pods does not hold back what goes by WireGuard, however much
// of it there is.
func TestDirectHoldsNothingBack(t *testing.T) {
	d, write := pipedDevice(t)
	other, _ := pipedDevice(t)
	d.Divert(toOther(other))
	for i := range 4 * readAhead {
		port := uint16(1)
		if i == readAhead/2 {
			port = remotePort
		}
		if err := write(udpFrame(port)); err != nil {
			t.Fatal(err)
		}
	}
	packets, err := newBatch().read(d)
	if err != nil || len(packets) != 1 {
		t.Fatalf("read %d packets, want 1: %v", len(packets), err)
	}
	if n := d.DirectOut.Packets.Load(); n >= 2*readAhead {
		t.Errorf("the packet has waited for %d others", n)
	}
}

// A frame that is longer than any that this kernel should make is lost, and only it.
func TestTooLongFrame(t *testing.T) {
	d, write := pipedDevice(t)
	p := packetSpec{udp: true, port: 1, payload: 1000}.build()
	long := append(ethernetFrame(unix.ETH_P_IP, vnetHdr{}, p), make([]byte, frameRoom)...)
	for _, frame := range [][]byte{long, udpFrame(2)} {
		if err := write(frame); err != nil {
			t.Fatal(err)
		}
	}
	packets, err := newBatch().read(d)
	if err != nil || len(packets) != 1 || !bytes.Equal(packets[0], udpFrame(2)[headerLen:]) {
		t.Errorf("read %d packets, want the second frame's: %v", len(packets), err)
	}
	if n := d.Dropped.Load(); n != 1 {
		t.Errorf("%d frames were dropped, want 1", n)
	}
}

// A virtio_net_hdr that says something else than the packet itself is for WireGuard,
// which looks at the packet once more.
func TestForgedHeader(t *testing.T) {
	tcp := packetSpec{port: 1, payload: 3000}.build()
	tcp6 := packetSpec{v6: true, port: 1, payload: 3000}.build()
	udp := packetSpec{udp: true, port: 1, payload: 3000}.build()
	small := packetSpec{udp: true, port: 1, payload: 10}.build()
	gso := func(kind uint8, start, offset uint16) vnetHdr {
		return vnetHdr{needsCsum: true, gsoType: kind, gsoSize: 1000, csumStart: start, csumOffset: offset}
	}
	const v4, v6 = unix.ETH_P_IP, unix.ETH_P_IPV6
	for _, tt := range []struct {
		name   string
		ether  uint16
		h      vnetHdr
		packet []byte
		want   bool
	}{
		{"plain", v4, vnetHdr{}, small, true},
		{"TCP", v4, gso(unix.VIRTIO_NET_HDR_GSO_TCPV4, 20, tcpCsumOffset), tcp, true},
		{"TCP, IPv6", v6, gso(unix.VIRTIO_NET_HDR_GSO_TCPV6, 40, tcpCsumOffset), tcp6, true},
		{"UDP", v4, gso(unix.VIRTIO_NET_HDR_GSO_UDP_L4, 20, udpCsumOffset), udp, true},
		{"checksum alone", v4, vnetHdr{needsCsum: true, csumStart: 20, csumOffset: udpCsumOffset}, small, true},
		{"the other family's segments", v4, gso(unix.VIRTIO_NET_HDR_GSO_TCPV6, 20, tcpCsumOffset), tcp, false},
		{"the other protocol's segments", v4, gso(unix.VIRTIO_NET_HDR_GSO_TCPV4, 20, tcpCsumOffset), udp, false},
		{"checksum of the other protocol", v4, gso(unix.VIRTIO_NET_HDR_GSO_UDP_L4, 20, tcpCsumOffset), udp, false},
		{"checksum further on", v4, gso(unix.VIRTIO_NET_HDR_GSO_TCPV4, 40, tcpCsumOffset), tcp, false},
		{"checksum in the payload", v4, vnetHdr{needsCsum: true, csumStart: 24, csumOffset: udpCsumOffset}, small, false},
	} {
		f, err := parseFrame(ethernetFrame(tt.ether, tt.h, tt.packet))
		if got := err == nil && f.consistent(); got != tt.want {
			t.Errorf("%s: %v (%v), want %v", tt.name, got, err, tt.want)
		}
	}
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
