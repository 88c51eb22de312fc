// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// wire joins the links of two pods as WireGuard would, without the crypto:
// what one pod sends is cut to the MTU, and coalesced again for the other.
type wire struct {
	big       atomic.Int64 // frames that were cut into several packets
	tooLong   atomic.Int64 // packets above the MTU, which WireGuard could not carry
	badCsum   atomic.Int64 // packets that left a pod with a wrong checksum
	coalesced atomic.Int64 // frames written that hold several packets

	// direct has the devices hand each other TCP and UDP themselves.
	direct  bool
	missed  atomic.Int64 // packets of these that were cut all the same
	devices [2]*Device
}

func join(t testing.TB, a, b *testPod) *wire {
	t.Helper()
	w := &wire{}
	w.start(t, a, b)
	return w
}

func (w *wire) start(t testing.TB, a, b *testPod) {
	t.Helper()
	w.devices = [2]*Device{mustOpen(t, a.link), mustOpen(t, b.link)}
	go w.pump(w.devices[0], w.devices[1])
	go w.pump(w.devices[1], w.devices[0])
}

func (w *wire) pump(from, to *Device) {
	from.Divert(func(packet []byte) *Device {
		if len(packet) > MTU {
			w.big.Add(1)
		}
		if w.direct && isTCPOrUDP(packet) {
			return to
		}
		return nil
	})
	b := newBatch()
	for {
		packets, err := b.read(from)
		if err != nil {
			return
		}
		for _, p := range packets {
			w.inspect(p)
			if w.direct && isTCPOrUDP(p) {
				w.missed.Add(1)
			}
		}
		if _, err := to.Write(packets, 0); err != nil {
			return
		}
		if len(to.out.frames) < len(packets) {
			w.coalesced.Add(1)
		}
	}
}

func (w *wire) inspect(p []byte) {
	if len(p) > MTU {
		w.tooLong.Add(1)
	}
	var s segment
	if s.parse(p); s.hasFlow && !s.checksumOK(p) {
		w.badCsum.Add(1)
	}
}

func (w *wire) check(t *testing.T) {
	t.Helper()
	if n := w.tooLong.Load(); n > 0 {
		t.Errorf("%d packets above the MTU of %d", n, MTU)
	}
	if n := w.badCsum.Load(); n > 0 {
		t.Errorf("%d packets with a wrong checksum", n)
	}
}

// features switches those of ts0's device features off that have one of the
// prefixes.
func (p *testPod) featuresOff(prefixes ...string) {
	p.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		names, err := featureNames(fd)
		if err != nil {
			return err
		}
		return clearFeatures(fd, len(names), func(i int) bool {
			for _, prefix := range prefixes {
				if strings.HasPrefix(names[i], prefix) {
					return true
				}
			}
			return false
		})
	})
}

func TestTCPBothWays(t *testing.T) {
	for _, tt := range []struct {
		name   string
		off    []string
		canBig bool
	}{
		{"all offloads", nil, true},
		{"no segmentation offload", []string{"tx-tcp"}, false},
		{"no checksum offload", []string{"tx-checksum", "tx-tcp"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := newTestPod(t, 1), newTestPod(t, 2)
			if tt.off != nil {
				a.featuresOff(tt.off...)
				b.featuresOff(tt.off...)
			}
			w := join(t, a, b)
			for _, addr := range []netip.Addr{b.v4, b.v6} {
				transfer(t, a, b, addr, 16<<20)
			}
			w.check(t)
			if got := w.big.Load() > 0; got != tt.canBig {
				t.Errorf("segmentation offload used: %v, want %v", got, tt.canBig)
			}
			if tt.canBig && w.coalesced.Load() == 0 {
				t.Error("nothing was coalesced")
			}
		})
	}
}

// transfer sends n random bytes from a to b and their digest back.
func transfer(t *testing.T, a, b *testPod, addr netip.Addr, n int) {
	t.Helper()
	var ln net.Listener
	b.Do(func() (err error) {
		ln, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		data, _ := io.ReadAll(c)
		// The way back carries data of the same size.
		sum := sha256.Sum256(data)
		c.Write(append(data, sum[:]...))
	}()
	var c net.Conn
	a.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", ln.Addr().String(), 10*time.Second)
		return err
	})
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	data := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(data)
	go func() {
		c.Write(data)
		c.(*net.TCPConn).CloseWrite()
	}()
	back, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("%v: reading back: %v", addr, err)
	}
	want := sha256.Sum256(data)
	if !bytes.Equal(back, append(data, want[:]...)) {
		t.Errorf("%v: %d bytes came back, %d were sent, or they differ", addr, len(back), len(data))
	}
}

// Datagrams of every kind: small, of the MTU exactly, fragmented, and in
// bursts that the kernel hands over uncut (UDP_SEGMENT).
func TestUDP(t *testing.T) {
	a, b := newTestPod(t, 1), newTestPod(t, 2)
	w := join(t, a, b)
	for _, addr := range []netip.Addr{b.v4, b.v6} {
		server := b.listenUDP(addr)
		defer server.Close()
		go echoUDP(server)
		client := a.dialUDP(server.LocalAddr())
		defer client.Close()
		headers := 28
		if addr.Is6() {
			headers = 48
		}
		for _, size := range []int{1, 2, 511, MTU - headers, MTU - headers + 1, 3000, 20000} {
			t.Run(fmt.Sprintf("%v/%d", addr, size), func(t *testing.T) { echoOne(t, client, size) })
		}
		t.Run(fmt.Sprintf("%v/burst", addr), func(t *testing.T) { echoBurst(t, client, 1000, 50) })
	}
	w.check(t)
}

func (p *testPod) listenUDP(addr netip.Addr) (c *net.UDPConn) {
	p.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		return err
	})
	return c
}

func (p *testPod) dialUDP(to net.Addr) (c *net.UDPConn) {
	p.Do(func() (err error) {
		c, err = net.DialUDP("udp", nil, to.(*net.UDPAddr))
		return err
	})
	return c
}

func echoUDP(c *net.UDPConn) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		c.WriteToUDPAddrPort(buf[:n], from)
	}
}

func echoOne(t *testing.T, c *net.UDPConn, size int) {
	t.Helper()
	data := bytes.Repeat([]byte{byte(size)}, size)
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, err := c.Read(buf)
	if err != nil || !bytes.Equal(buf[:n], data) {
		t.Errorf("echo of %d bytes: %d bytes, %v", size, n, err)
	}
}

// echoBurst sends count datagrams of size bytes with one call.
func echoBurst(t *testing.T, c *net.UDPConn, size, count int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size) })
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, size*count)
	for i := range count {
		binary.BigEndian.PutUint32(data[i*size:], uint32(i))
	}
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	for i := range count {
		n, err := c.Read(buf)
		if err != nil || !bytes.Equal(buf[:n], data[i*size:(i+1)*size]) {
			t.Fatalf("datagram %d of %d: %d bytes, %v", i, count, n, err)
		}
	}
}

// A ping of 1252 bytes fills the MTU; one more is refused, not lost.
func TestICMP(t *testing.T) {
	a, b := newTestPod(t, 1), newTestPod(t, 2)
	w := join(t, a, b)
	var c net.PacketConn
	a.Do(func() (err error) {
		c, err = net.ListenPacket("ip4:icmp", a.v4.String())
		return err
	})
	defer c.Close()
	raw, err := c.(*net.IPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	})
	if err != nil {
		t.Fatal(err)
	}
	to := &net.IPAddr{IP: b.v4.AsSlice()}
	if _, err := c.WriteTo(echoRequest(1252), to); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, _, err := c.ReadFrom(buf); err != nil || n != 1260 || buf[0] != 0 {
		t.Errorf("echo reply: %d bytes, type %d, %v", n, buf[0], err)
	}
	if _, err := c.WriteTo(echoRequest(1253), to); err == nil {
		t.Error("a ping of 1253 bytes was sent")
	}
	w.check(t)
}

func echoRequest(payload int) []byte {
	p := make([]byte, 8+payload)
	p[0] = 8
	p[5] = 7 // identifier
	var sum uint32
	for i := 0; i < len(p)-1; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	if len(p)%2 == 1 {
		sum += uint32(p[len(p)-1]) << 8
	}
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	binary.BigEndian.PutUint16(p[2:], ^uint16(sum))
	return p
}

// A pod that may forge frames must not reach the host's stack, whatever it
// puts into them; our socket must see them all the same.
func TestHostEndDropsFrames(t *testing.T) {
	pod := newTestPod(t, 1)
	d := mustOpen(t, pod.link)
	seen := make(chan struct{}, 64)
	go func() {
		b := newBatch()
		for {
			if _, err := b.read(d); err != nil {
				return
			}
			seen <- struct{}{}
		}
	}()

	// arrived sends frames and returns how many the host's stack took in.
	// The last may still be on its way when the socket has seen it.
	const frames = 20
	arrived := func(dst net.HardwareAddr) int {
		before := hostReceives(t)
		for range frames {
			pod.forge(dst, netip.MustParseAddr("127.0.0.1"))
			<-seen
		}
		return hostReceives(t) - before
	}
	everyone := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	for _, dst := range []net.HardwareAddr{pod.link.hostMAC, everyone} {
		if n := arrived(dst); n != 0 {
			t.Errorf("%d frames to %v reached the host's stack", n, dst)
		}
	}

	// Without the filters the same frames arrive: the check above can fail.
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: pod.link.hostIndex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	if err := netlink.QdiscDel(qdisc); err != nil {
		t.Fatal(err)
	}
	if n := arrived(pod.link.hostMAC); n < frames-1 {
		t.Errorf("without the filters %d of %d frames arrived: this test proves nothing", n, frames)
	}
	mustEnsure(t, pod.Pod, pod.link.Host)
	if n := arrived(pod.link.hostMAC); n > 1 {
		t.Errorf("Ensure did not restore the filters: %d frames arrived", n)
	}
}

// What the host sends on the link must not reach the pod.
func TestHostEndDropsTowardsThePod(t *testing.T) {
	pod := newTestPod(t, 1)
	host, err := netlink.LinkByIndex(pod.link.hostIndex)
	if err != nil {
		t.Fatal(err)
	}
	h := pod.Netlink()
	received := func() uint64 {
		ts0, err := h.LinkByName(PodLink)
		if err != nil {
			t.Fatal(err)
		}
		return ts0.Attrs().Statistics.RxPackets
	}
	before := received()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	frame := ipFrame(pod.link.podMAC, netip.MustParseAddr("192.0.2.1"), pod.v4)
	err = unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: host.Attrs().Index, Protocol: bigEndian16(unix.ETH_P_IP)})
	if err != nil {
		t.Logf("refused: %v", err)
	}
	if got := received(); got != before {
		t.Errorf("the pod received %d packets from the host", got-before)
	}
	// Ours passes.
	d := mustOpen(t, pod.link)
	if _, err := d.Write([][]byte{frame[ethHdrLen:]}, 0); err != nil {
		t.Fatal(err)
	}
	if got := received(); got != before+1 {
		t.Errorf("the pod received %d packets from the device, want 1", got-before)
	}
}

// forge sends a frame from within the pod to a MAC address of its choosing.
func (p *testPod) forge(dst net.HardwareAddr, to netip.Addr) {
	p.Do(func() error {
		ts0, err := net.InterfaceByName(PodLink)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, ipFrame(dst, p.v4, to), 0,
			&unix.SockaddrLinklayer{Ifindex: ts0.Index, Protocol: bigEndian16(unix.ETH_P_IP)})
	})
}

// ipFrame returns a frame with an IPv4 packet of protocol 253 (for
// experiments, RFC 3692).
func ipFrame(dst net.HardwareAddr, from, to netip.Addr) []byte {
	v4, _ := ethernetHeaders(dst, net.HardwareAddr{2, 0, 0, 0, 0, 9})
	ip := make([]byte, 28)
	ip[0], ip[8], ip[9] = 0x45, 64, 253
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	copy(ip[12:], from.AsSlice())
	copy(ip[16:], to.AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	return append(v4[:], ip...)
}

// hostReceives returns how many IPv4 packets the stack of the tests' netns
// has received.
func hostReceives(t *testing.T) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/snmp")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(b), "\n")
	names, values := strings.Fields(lines[0]), strings.Fields(lines[1])
	for i, name := range names {
		if name == "InReceives" {
			fmt.Sscan(values[i], &n)
			return n
		}
	}
	t.Fatal("no InReceives in /proc/net/snmp")
	return 0
}

func BenchmarkForward(b *testing.B) {
	for _, family := range []string{"IPv4", "IPv6"} {
		b.Run(family, func(b *testing.B) { benchmarkForward(b, family == "IPv6") })
	}
}

// benchmarkForward measures TCP from pod to pod over two devices, without
// crypto.
func benchmarkForward(b *testing.B, v6 bool) {
	p, q := newTestPod(b, 1), newTestPod(b, 2)
	join(b, p, q)
	addr := q.v4
	if v6 {
		addr = q.v6
	}
	var ln net.Listener
	q.Do(func() (err error) {
		ln, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	defer ln.Close()
	var c net.Conn
	p.Do(func() (err error) {
		c, err = net.Dial("tcp", ln.Addr().String())
		return err
	})
	server, err := ln.Accept()
	if err != nil {
		b.Fatal(err)
	}
	const chunk = 1 << 20
	b.SetBytes(chunk)
	go func() {
		buf := make([]byte, chunk)
		for range b.N {
			c.Write(buf)
		}
		c.Close()
	}()
	b.ResetTimer()
	if n, err := io.Copy(io.Discard, server); err != nil || n != int64(b.N)*chunk {
		b.Fatalf("received %d bytes: %v", n, err)
	}
}
