// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"tailscale.com/net/packet"
	"tailscale.com/types/ipproto"

	"tailscale-nri/engine/internal/nstest"
)

const (
	subnet, subnet6         = "198.18.5.0/24", "2001:db8:5::/64"
	subnetAddr, subnetAddr6 = "198.18.5.7", "2001:db8:5::7"
	besides, besides6       = "198.18.6.7", "2001:db8:6::7" // not in the subnets
	metadata                = "169.254.169.254"
)

// newForwarder is a pod that forwards, and a node that has all of the addresses.
func newForwarder(t *testing.T, host string, f Forward) *cluster {
	t.Helper()
	c := newCluster(t, host, func(c *cluster) { c.router.Forward(f) })
	node := c.node.Netlink()
	cni0, err := node.LinkByName("cni0")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{subnetAddr, subnetAddr6, besides, besides6, metadata, worldAddr, worldAddr6, privateAddr} {
		addr := netip.MustParseAddr(a)
		err := node.AddrAdd(cni0, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, addr.BitLen())), Flags: 0x02})
		if err != nil {
			t.Fatal(err)
		}
	}
	if why := c.router.Trouble(); why != "" {
		t.Fatal(why)
	}
	return c
}

// answered sends echo requests of a peer until the last, which is known to be
// answered, is, and returns those that were. IPv6 loses what is sent in the first
// second of an interface.
func (c *cluster) answered(t *testing.T, got <-chan flow, to ...string) map[string]bool {
	t.Helper()
	seen := map[string]bool{}
	last := netip.MustParseAddr(to[len(to)-1])
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		for _, a := range to {
			dst, src := netip.MustParseAddr(a), netip.MustParseAddr(peerAddr)
			if dst.Is6() {
				src = netip.MustParseAddr(peerAddr6)
			}
			if _, err := c.device.Write([][]byte{pingPacket(t, src, dst)}, 0); err != nil {
				t.Fatal(err)
			}
		}
		if c.heard(got, seen, last) {
			return seen
		}
	}
	t.Fatalf("nobody answered from %v, but %v", last, seen)
	return nil
}

// heard notes in seen whose answers the peer gets, until last is one of them or none
// has come for a while.
func (c *cluster) heard(got <-chan flow, seen map[string]bool, last netip.Addr) bool {
	for {
		select {
		case f := <-got:
			if f.dst != netip.MustParseAddr(peerAddr) && f.dst != netip.MustParseAddr(peerAddr6) {
				continue
			}
			seen[f.src.String()] = true
			if f.src == last {
				return true
			}
		case <-time.After(300 * time.Millisecond):
			return false
		}
	}
}

// A pod forwards what it advertises and nothing else, under any reverse path filter,
// and nothing from its cluster into the tailnet.
func TestForward(t *testing.T) {
	c := newForwarder(t, "tsforward", Forward{To: prefixes(subnet, subnet6)})
	got := packetsOf(t, c.device)
	for _, rp := range []string{"1", "0", "2"} {
		c.rpFilter(rp)
		if seen := c.answered(t, got, besides, worldAddr, privateAddr, metadata, nodeEth4, dnsAddr, subnetAddr); len(seen) != 1 {
			t.Errorf("rp_filter %s: forwarded to %v", rp, seen)
		}
	}
	if seen := c.answered(t, got, besides6, worldAddr6, nodeEth6, subnetAddr6); len(seen) != 1 {
		t.Errorf("forwarded to %v", seen)
	}

	// A neighbour that sends to a peer by way of the pod.
	node := c.node.Netlink()
	for peer, pod := range map[string]string{peerAddr: podEth4, peerAddr6: podEth6} {
		p := netip.MustParseAddr(peer)
		if err := node.RouteAdd(&netlink.Route{Dst: ipNet(netip.PrefixFrom(p, p.BitLen())), Gw: net.ParseIP(pod)}); err != nil {
			t.Fatal(err)
		}
		c.node.Do(func() error {
			conn, err := net.Dial("udp", net.JoinHostPort(peer, "9"))
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.Write([]byte("hello"))
			return err
		})
	}
	seen := c.answered(t, got, subnetAddr6)
	c.heard(got, seen, netip.Addr{})
	if len(seen) != 1 {
		t.Errorf("the tailnet is reached by %v", seen)
	}
}

// Nothing is forwarded under a peer's own address, as packets without a connection
// would be.
func TestForwardMasqueradesAll(t *testing.T) {
	c := newForwarder(t, "tsforwardinv", Forward{To: prefixes(subnet, subnet6)})
	out, back := c.arrivals(t), packetsOf(t, c.device)
	for _, p := range [][3]string{{peerAddr, subnetAddr, nodeEth4}, {peerAddr6, subnetAddr6, nodeEth6}} {
		src, dst, last := netip.MustParseAddr(p[0]), netip.MustParseAddr(p[1]), netip.MustParseAddr(p[2])
		h := packet.Header(packet.IP4Header{IPProto: ipproto.TCP, Src: src, Dst: dst})
		from := netip.MustParseAddr(podEth4)
		if src.Is6() {
			h, from = packet.IP6Header{IPProto: ipproto.TCP, Src: src, Dst: dst}, netip.MustParseAddr(podEth6)
		}
		c.answered(t, back, p[1])
		if _, err := c.device.Write([][]byte{packet.Generate(h, checksummed(src, dst, tcpSegment(0x04)))}, 0); err != nil {
			t.Fatal(err)
		}
		c.answered(t, back, p[1]) // ts0 keeps the order
		c.pod.Do(func() error {
			s := sent{kind: unix.SOCK_DGRAM, proto: unix.IPPROTO_UDP, payload: []byte("hello")}
			return s.send(from, last)
		})
		expectUntil(t, out, "of a peer, without a connection", src, last)
	}
}

// checksummed writes the checksum into a TCP segment.
func checksummed(src, dst netip.Addr, segment []byte) []byte {
	pseudo := slices.Concat(src.AsSlice(), dst.AsSlice(), []byte{0, unix.IPPROTO_TCP}, binary.BigEndian.AppendUint16(nil, uint16(len(segment))))
	sum := uint32(0)
	for b := slices.Concat(pseudo, segment); len(b) > 0; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(segment[16:], ^uint16(sum))
	return segment
}

// An exit node forwards to the internet, and not to the cluster, nor to what is
// every host's own.
func TestForwardEverything(t *testing.T) {
	c := newForwarder(t, "tsforwardall", Forward{
		Everything: true, To: prefixes("10.96.0.10/32"),
		Never: prefixes("10.0.0.0/8", "fc00::/7", serviceRange),
	})
	got := packetsOf(t, c.device)
	if seen := c.answered(t, got, nodeEth4, metadata, dnsAddr, privateAddr, worldAddr); len(seen) != 2 || !seen[privateAddr] {
		t.Errorf("forwarded to %v", seen)
	}
	if seen := c.answered(t, got, nodeEth6, serviceAddr6, worldAddr6); len(seen) != 1 {
		t.Errorf("forwarded to %v", seen)
	}
}

// When the filter, or forwarding, is removed, that is noticed and it comes back.
func TestForwardIsRestored(t *testing.T) {
	c := newForwarder(t, "tsreforward", Forward{To: prefixes(subnet, subnet6)})
	got := packetsOf(t, c.device)
	ns, err := c.link.NS.open()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	changes := c.changes(t)
	for name, harm := range map[string]func(*nftables.Conn){
		"all is flushed":     func(n *nftables.Conn) { n.FlushRuleset() },
		"a table is deleted": func(n *nftables.Conn) { n.DelTable(c.router.fwd.table.of(true)) },
		"a chain is flushed": func(n *nftables.Conn) {
			n.FlushChain(&nftables.Chain{Name: "source", Table: c.router.fwd.table.of(false)})
		},
		"forwarding is off": func(*nftables.Conn) {
			c.pod.Do(func() error {
				dir, err := openSysctls()
				if err != nil {
					return err
				}
				return writeSysctl(dir, "net/ipv4/conf/eth0/forwarding", "0")
			})
		},
		"IPv6 forwarding is off": func(*nftables.Conn) {
			c.pod.Do(func() error {
				dir, err := openSysctls()
				if err != nil {
					return err
				}
				return writeSysctl(dir, "net/ipv6/conf/all/forwarding", "0")
			})
		},
	} {
		if !c.router.filters() {
			t.Fatalf("before %s it does not forward", name)
		}
		time.Sleep(50 * time.Millisecond) // until what restored it was heard of
		for len(changes) > 0 {
			<-changes
		}
		conn, err := nftables.New(nftables.WithNetNSFd(int(ns)))
		if err != nil {
			t.Fatal(err)
		}
		harm(conn)
		if err := conn.Flush(); err != nil {
			t.Fatal(err)
		}
		for !c.router.MayAffect(<-changes) { // or the test does not end
		}
		if c.router.filters() {
			t.Errorf("nobody sees that %s", name)
		}
		if missing, err := c.router.Restore(); err != nil || len(missing) != 1 {
			t.Errorf("when %s, restored %v (%v)", name, missing, err)
		}
		if seen := c.answered(t, got, besides, subnetAddr); len(seen) != 1 {
			t.Errorf("after %s forwarded to %v", name, seen)
		}
		c.answered(t, got, subnetAddr6)
	}
}

// The default route that a pod has from a router advertisement outlives that it
// forwards IPv6.
func TestForwardKeepsAdvertisedRoute(t *testing.T) {
	c := newCluster(t, "tsacceptra")
	c.pod.Do(func() error {
		dir, err := openSysctls()
		if err != nil {
			return err
		}
		if got, err := readSysctl(dir, "net/ipv6/conf/eth0/accept_ra"); err != nil || got != "1" {
			t.Errorf("accept_ra is %q (%v), want 1", got, err)
		}
		if err := forward6(); err != nil {
			return err
		}
		for file, want := range map[string]string{"net/ipv6/conf/eth0/accept_ra": "2", "net/ipv6/conf/ts0/forwarding": "1"} {
			if got, err := readSysctl(dir, file); err != nil || got != want {
				t.Errorf("%s is %q (%v), want %s", file, got, err, want)
			}
		}
		return nil
	})
	var here string
	nstest.NewPod(t).Do(func() error {
		dir, err := openSysctls()
		if err != nil {
			return err
		}
		here, err = readSysctl(dir, "net/ipv6/conf/all/forwarding")
		return err
	})
	if here != "0" {
		t.Errorf("another netns forwards: %q", here)
	}
}

// filters reports whether the pod filters and forwards as it was last set up to.
func (r *Router) filters() bool {
	return (r.exit == nil || r.exit.table.intact(r.ns)) && (r.fwd == nil || r.fwd.intact(r.ns))
}
