// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"encoding/binary"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"tailscale.com/wgengine/router"
)

// arrivals hands out the flows of the IP packets that the node gets from its pods.
func (c *cluster) arrivals(t *testing.T) <-chan flow {
	t.Helper()
	var fd int
	c.node.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))))
		return err
	})
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		t.Fatal(err)
	}
	over, got := make(chan struct{}), make(chan flow, 1000)
	t.Cleanup(func() { close(over) })
	go func() {
		defer unix.Close(fd)
		for buf := make([]byte, 1500); ; {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			select {
			case <-over:
				return
			default:
			}
			switch {
			case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			case err != nil:
				return
			case n >= 20 && buf[0]>>4 == 4:
				got <- flow{netip.AddrFrom4([4]byte(buf[12:])), netip.AddrFrom4([4]byte(buf[16:]))}
			case n >= 40 && buf[0]>>4 == 6:
				got <- flow{netip.AddrFrom16([16]byte(buf[8:])), netip.AddrFrom16([16]byte(buf[24:]))}
			}
		}
	}()
	return got
}

// sent is how a program in the pod can send a packet by eth0, bound to its address or to
// the device.
type sent struct {
	kind, proto int
	mark        int
	payload     []byte
	byDevice    bool
}

func (s *sent) send(from, to netip.Addr) error {
	family, port := unix.AF_INET, 0
	if s.kind == unix.SOCK_DGRAM {
		port = 9
	}
	at := func(a netip.Addr, port int) unix.Sockaddr { return &unix.SockaddrInet4{Addr: a.As4(), Port: port} }
	if to.Is6() {
		family = unix.AF_INET6
		at = func(a netip.Addr, port int) unix.Sockaddr { return &unix.SockaddrInet6{Addr: a.As16(), Port: port} }
	}
	fd, err := unix.Socket(family, s.kind|unix.SOCK_CLOEXEC, s.proto)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, s.mark); err != nil {
		return err
	}
	if s.byDevice {
		err = unix.BindToDevice(fd, "eth0")
	} else {
		err = unix.Bind(fd, at(from, 0))
	}
	if err != nil {
		return err
	}
	err = unix.Sendto(fd, s.payload, 0, at(to, port))
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EHOSTUNREACH) {
		return nil // refused
	}
	return err
}

// tcpSegment is a TCP segment without data, and without a checksum, which conntrack
// checks where a packet comes in.
func tcpSegment(flags byte) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, 4711)
	binary.BigEndian.PutUint16(b[2:], 9)
	b[12], b[13] = 5<<4, flags
	return b
}

// Whatever a program does with an unprivileged container's capabilities, except a
// packet socket, no packet leaves by eth0 to a destination that does not stay there.
func TestExitHasNoHoles(t *testing.T) {
	c := newCluster(t, "tsexitholes", useExit)
	got := c.arrivals(t)
	for name, s := range map[string]sent{
		"UDP":                      {kind: unix.SOCK_DGRAM, proto: unix.IPPROTO_UDP, payload: []byte("hello")},
		"UDP by the device":        {kind: unix.SOCK_DGRAM, proto: unix.IPPROTO_UDP, payload: []byte("hello"), byDevice: true},
		"UDP with a mark":          {kind: unix.SOCK_DGRAM, proto: unix.IPPROTO_UDP, mark: forwardMark, payload: []byte("hello")},
		"TCP without a connection": {kind: unix.SOCK_RAW, proto: unix.IPPROTO_TCP, payload: tcpSegment(0x04)},
		"TCP with no flags":        {kind: unix.SOCK_RAW, proto: unix.IPPROTO_TCP, payload: tcpSegment(0)},
		"an answer to nobody":      {kind: unix.SOCK_RAW, proto: unix.IPPROTO_ICMP, payload: []byte{0, 0, 0xff, 0xff, 0, 0, 0, 0}},
		"an unknown protocol":      {kind: unix.SOCK_RAW, proto: 253, payload: []byte("hello")},
		"IGMP":                     {kind: unix.SOCK_RAW, proto: unix.IPPROTO_IGMP, payload: []byte("hello")},
	} {
		for _, p := range [][3]string{{podEth4, worldAddr, nodeEth4}, {podEth6, worldAddr6, nodeEth6}} {
			if s.proto == unix.IPPROTO_ICMP && p[0] == podEth6 {
				s.proto, s.payload = unix.IPPROTO_ICMPV6, []byte{129, 0, 0, 0, 0, 0, 0, 0}
			}
			c.sendAll(t, got, name, s, p)
		}
	}
}

// sendAll sends s to the world, and then something to the node, from eth0's address, and
// checks that only the latter arrives.
func (c *cluster) sendAll(t *testing.T, got <-chan flow, name string, s sent, fromWorldNode [3]string) {
	t.Helper()
	var addrs [3]netip.Addr
	for i, a := range fromWorldNode {
		addrs[i] = netip.MustParseAddr(a)
	}
	from, world, node := addrs[0], addrs[1], addrs[2]
	c.pod.Do(func() error {
		if err := s.send(from, world); err != nil {
			t.Errorf("%s to %v: %v", name, world, err)
		}
		last := sent{kind: unix.SOCK_DGRAM, proto: unix.IPPROTO_UDP, payload: []byte("hello")}
		return last.send(from, node)
	})
	expectUntil(t, got, name, world, node)
}

// expectUntil checks that nothing arrives from or for never before something does for
// last.
func expectUntil(t *testing.T, got <-chan flow, name string, never, last netip.Addr) {
	t.Helper()
	for deadline := time.After(20 * time.Second); ; {
		select {
		case f := <-got:
			if f.src == never || f.dst == never {
				t.Errorf("%s left by eth0: %v", name, f)
			}
			if f.dst == last {
				return
			}
		case <-deadline:
			t.Fatalf("nothing arrived at %v", last)
		}
	}
}

// A default route in disguise opens nothing.
func TestExitWithHalfRoutes(t *testing.T) {
	c := newCluster(t, "tsexithalves", func(c *cluster) {
		h := c.pod.Netlink()
		eth0, err := h.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		for _, half := range prefixes("0.0.0.0/1", "128.0.0.0/1", "198.0.0.0/7", "::/1", "2000::/3", "2001:d00::/24") {
			if err := h.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: ipNet(half)}); err != nil {
				t.Fatal(err)
			}
		}
		useExit(c)
		if _, err := c.router.Fence(); err != nil {
			t.Fatal(err)
		}
	})
	closed := map[string]string{worldAddr: "", worldAddr6: ""}
	c.expectWays(t, "with wide routes", closed)
	got := c.arrivals(t)
	for _, p := range [][3]string{{podEth4, worldAddr, nodeEth4}, {podEth6, worldAddr6, nodeEth6}} {
		c.sendAll(t, got, "UDP", sent{kind: unix.SOCK_DGRAM, proto: unix.IPPROTO_UDP, payload: []byte("hello")}, p)
	}
	if err := restore(c.router); err != nil {
		t.Fatal(err)
	}
	c.expectWays(t, "restored", closed)
}

// Where the pod has IPv6 switched off, lo's included, IPv4 is closed as well.
func TestExitWithoutIPv6(t *testing.T) {
	newCluster(t, "tsexitno6", func(c *cluster) {
		c.setIPv6Off(t, "1")
		useExit(c)
		for range 2 {
			if _, err := c.router.Fence(); err != nil {
				t.Fatal(err)
			}
		}
		c.expectWays(t, "without IPv6", map[string]string{worldAddr: "", nodeEth4: "eth0"})
		c.setIPv6Off(t, "0")
	})
}

func (c *cluster) setIPv6Off(t *testing.T, off string) {
	t.Helper()
	c.pod.Do(func() error {
		dir, err := openSysctls()
		if err != nil {
			return err
		}
		defer unix.Close(dir)
		for _, name := range []string{"all", "default", "lo"} {
			err = errors.Join(err, writeSysctl(dir, "net/ipv6/conf/"+name+"/disable_ipv6", off))
		}
		return err
	})
}

// Two routers of a pod agree on its filter, also where the cluster's addresses have
// changed in between: otherwise each would hear of the other's change, and undo it,
// forever.
func TestExitIsShared(t *testing.T) {
	c := newCluster(t, "tsexitshared", useExit)
	fence := c.link.Router(c.router.logger, prefixes("203.0.113.7/32"), nil)
	fence.UseExit(Exit{Private: c.router.exit.Private})
	if _, err := fence.Fence(); err != nil {
		t.Fatal(err)
	}
	next := c.link.Router(c.router.logger, prefixes("203.0.113.8/32"), nil)
	next.UseExitOf(fence)
	was := fence.exit.table.marks
	if err := next.Set(&router.Config{LocalAddrs: prefixes(ownAddr + "/32")}); err != nil {
		t.Fatal(err)
	}
	if _, err := fence.Fence(); err != nil {
		t.Fatal(err)
	}
	if is := fence.exit.table.marks; !maps.EqualFunc(was, is, slices.Equal[[]string]) {
		t.Errorf("the filter was %v, is %v", was, is)
	}
}

// A table of the same shape in the place of ours is noticed.
func TestExitOfAnotherTable(t *testing.T) {
	c := newCluster(t, "tsexitother", useExit)
	other := nftTable{name: c.router.exit.table.name, chains: c.router.exit.table.chains}
	open := func(v6 bool) []nftChain {
		chains := c.router.exit.chains(v6)
		for i := range chains[0].rules {
			chains[0].rules[i] = accept()
		}
		return chains
	}
	if err := other.install(c.link.NS, open); err != nil {
		t.Fatal(err)
	}
	if missing, err := c.router.Fence(); err != nil || len(missing) != 1 {
		t.Errorf("restored %v (%v)", missing, err)
	}
	if !c.router.exit.table.intact(c.link.NS) || other.intact(c.link.NS) {
		t.Error("it is not restored")
	}
}
