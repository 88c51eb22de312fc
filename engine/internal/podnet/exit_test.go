// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"tailscale.com/wgengine/router"
)

const (
	worldAddr, worldAddr6 = "198.51.100.1", "2001:db8:9::1" // on the internet
	privateAddr           = "10.96.0.10"                    // of a Service that nobody has named
)

// way returns the interface by which what the pod begins to an address leaves, ""
// if it is refused.
func (c *cluster) way(t *testing.T, to string) string {
	t.Helper()
	h := c.pod.Netlink()
	routes, err := h.RouteGet(net.ParseIP(to))
	if errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) {
		return ""
	}
	if err != nil || len(routes) != 1 {
		t.Fatalf("to %s: %v (%v)", to, routes, err)
	}
	link, err := h.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Name
}

func (c *cluster) expectWays(t *testing.T, when string, ways map[string]string) {
	t.Helper()
	for to, want := range ways {
		if got := c.way(t, to); got != want {
			t.Errorf("%s, what goes to %s leaves by %q, want %q", when, to, got, want)
		}
	}
}

func useExit(c *cluster) {
	c.router.UseExit(Exit{Private: prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")})
}

// What is to go by an exit node is refused from before ts0 has an address on, and
// whatever happens to ts0, in both families. The cluster stays reachable.
func TestExitFailsClosed(t *testing.T) {
	stays := map[string]string{
		nodeEth4: "eth0", nodeEth6: "eth0", serviceAddr6: "eth0", dnsAddr: "eth0", privateAddr: "eth0", "192.168.7.7": "eth0", "fd00::7": "eth0",
	}
	closed := map[string]string{worldAddr: "", worldAddr6: ""}
	c := newCluster(t, "tsexit", func(c *cluster) {
		c.expectWays(t, "before", map[string]string{worldAddr: "eth0", worldAddr6: "eth0"})
		useExit(c)
		for i := range 2 {
			missing, err := c.router.Fence()
			if err != nil || len(missing) != 1-i {
				t.Fatalf("fencing it for the %d. time: %v (%v)", i+1, missing, err)
			}
		}
		c.expectWays(t, "without an address", closed)
		c.expectWays(t, "without an address", stays)
	})
	c.expectWays(t, "without an exit node", closed)
	c.expectWays(t, "without an exit node", stays)

	cfg := &router.Config{
		LocalAddrs: prefixes(ownAddr+"/32", ownAddr6+"/128"),
		Routes:     prefixes(peerAddr+"/32", "fd7a:115c:a1e0::/48", "0.0.0.0/0", "::/0", "192.168.7.0/24", "10.0.0.0/8"),
	}
	if err := c.router.Set(cfg); err != nil {
		t.Fatal(err)
	}
	const with = "with an exit node, and subnets that peers have"
	c.expectWays(t, with, map[string]string{
		worldAddr: PodLink, worldAddr6: PodLink, "192.168.7.7": PodLink, "192.168.8.8": "eth0",
		privateAddr: PodLink, nodeEth4: "eth0", dnsAddr: "eth0", peerAddr: PodLink, "fd00::7": "eth0",
	})
	h := c.pod.Netlink()
	ts0, err := h.LinkByName(PodLink)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetDown(ts0); err != nil {
		t.Fatal(err)
	}
	c.expectWays(t, "with ts0 down", map[string]string{worldAddr: "", worldAddr6: "", nodeEth4: "eth0", dnsAddr: "eth0"})
	c.expectClosedSource(t)
	if _, err := c.link.Restore(); err != nil {
		t.Fatal(err)
	}
	if missing, err := c.router.Restore(); err != nil || len(missing) == 0 {
		t.Errorf("restored %v (%v)", missing, err)
	}
	c.expectWays(t, "restored", map[string]string{worldAddr: PodLink, worldAddr6: PodLink})
	cfg.Routes = cfg.Routes[:2]
	if err := c.router.Set(cfg); err != nil {
		t.Fatal(err)
	}
	c.expectWays(t, "when the exit node is gone", closed)
	c.expectWays(t, "when the exit node is gone", stays)
	if err := Remove(c.link.Host); err != nil {
		t.Fatal(err)
	}
	c.expectWays(t, "without ts0", closed)
	c.expectWays(t, "without ts0", stays)
}

// What comes by eth0 is answered there, from wherever it comes. What the pod begins
// does not leave there, even by a socket that is bound to eth0's address.
func TestExitAnswersByEth0(t *testing.T) {
	c := newCluster(t, "tsexitanswers", useExit)
	node := c.node.Netlink()
	cni0, err := node.LinkByName("cni0")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{worldAddr, worldAddr6} {
		addr := netip.MustParseAddr(a)
		err := node.AddrAdd(cni0, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, addr.BitLen())), Flags: unix.IFA_F_NODAD})
		if err != nil {
			t.Fatal(err)
		}
	}
	serveEcho(t, c.pod)
	serveEcho(t, c.node)
	for _, p := range []struct{ world, node, pod string }{{worldAddr, nodeEth4, podEth4}, {worldAddr6, nodeEth6, podEth6}} {
		for _, network := range []string{"tcp", "udp", "icmp"} {
			c.node.Do(func() error {
				for _, from := range []string{p.node, p.world} {
					if err := probe(network, from, p.pod); err != nil {
						t.Errorf("%s from %s to %s: %v", network, from, p.pod, err)
					}
				}
				return nil
			})
			c.pod.Do(func() error {
				if err := probe(network, p.pod, p.node); err != nil {
					t.Errorf("%s from %s to %s: %v", network, p.pod, p.node, err)
				}
				return nil
			})
		}
		c.expectNoLeak(t, p.pod, p.world)
	}
}

// expectNoLeak checks that nothing goes from eth0's address to the world.
func (c *cluster) expectNoLeak(t *testing.T, from, to string) {
	t.Helper()
	c.pod.Do(func() error {
		d := net.Dialer{Timeout: 500 * time.Millisecond, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		if conn, err := d.Dial("tcp", net.JoinHostPort(to, echoPort)); err == nil {
			conn.Close()
			t.Errorf("a connection from %s to %s left by eth0", from, to)
		}
		return nil
	})
}

// Many routes of the pod's own do not prevent it.
func TestExitWithManyRoutes(t *testing.T) {
	newCluster(t, "tsexitmany", func(c *cluster) {
		h := c.pod.Netlink()
		eth0, err := h.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		for i := range 1200 {
			dst := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i / 100), byte(2 * (i % 100))}), 32)
			if err := h.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: ipNet(dst)}); err != nil {
				t.Fatal(err)
			}
		}
		useExit(c)
		if _, err := c.router.Fence(); err != nil {
			t.Fatal(err)
		}
		c.expectWays(t, "with many routes", map[string]string{"198.18.0.8": "eth0", worldAddr: "", worldAddr6: ""})
	})
}

// expectClosedSource checks that what has ts0's address as its source is refused.
func (c *cluster) expectClosedSource(t *testing.T) {
	t.Helper()
	for to, from := range map[string]string{worldAddr: ownAddr, nodeEth4: ownAddr} {
		routes, err := c.pod.Netlink().RouteGetWithOptions(net.ParseIP(to), &netlink.RouteGetOptions{SrcAddr: net.ParseIP(from)})
		if !errors.Is(err, unix.EHOSTUNREACH) {
			t.Errorf("from %s to %s: %v (%v)", from, to, routes, err)
		}
	}
}

// When a rule, route or filter that refuses is removed, the watch hears of it and it
// comes back.
func TestFenceIsRestored(t *testing.T) {
	c := newCluster(t, "tsfence", useExit)
	changes := c.changes(t)
	want := show(t, c.pod.Netlink())
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		for _, what := range []func() error{
			func() error { return c.deleteClosed(family) },
			func() error { return c.deleteRules(family) },
			func() error { return c.deleteTable(family) },
		} {
			if err := what(); err != nil {
				t.Fatal(err)
			}
			for !c.router.MayAffect(<-changes) { // or the test does not end
			}
			if missing, err := c.router.Restore(); err != nil || len(missing) == 0 {
				t.Errorf("restored %v (%v)", missing, err)
			}
			if got := show(t, c.pod.Netlink()); got != want {
				t.Errorf("restored:\n%s\nwant:\n%s", got, want)
			}
		}
	}
}

// changes are those of the link and of the pod's filters.
func (c *cluster) changes(t *testing.T) chan Change {
	t.Helper()
	w, err := OpenWatch()
	if err != nil {
		t.Fatal(err)
	}
	done, changes := make(chan struct{}), make(chan Change, 1000)
	failed := func(err error) { t.Error(err) }
	t.Cleanup(func() { close(done) })
	for range 2 {
		if err := w.HearFilters(done, failed); err != nil {
			t.Fatal(err)
		}
	}
	go w.Run(done, failed)
	w.Add(c.link, func(ch Change) { changes <- ch })
	return changes
}

func (c *cluster) deleteClosed(family int) error {
	h := c.pod.Netlink()
	routes, err := h.RouteListFiltered(family, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	for _, r := range routes {
		if r.Type == unix.RTN_UNREACHABLE {
			err = errors.Join(err, h.RouteDel(&r))
		}
	}
	return err
}

func (c *cluster) deleteTable(family int) error {
	ns, err := c.link.NS.open()
	if err != nil {
		return err
	}
	defer ns.Close()
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		return err
	}
	conn.DelTable(c.router.exit.table.of(family == netlink.FAMILY_V6))
	return conn.Flush()
}

func (c *cluster) deleteRules(family int) error {
	h := c.pod.Netlink()
	rules, err := listRules(h)
	for _, r := range slices.DeleteFunc(rules, func(r netlink.Rule) bool { return r.Family != family }) {
		err = errors.Join(err, h.RuleDel(&r))
	}
	return err
}

// A pod has no more routes, rules and requests to the kernel for what it does not
// ask for.
func TestNothingUnasked(t *testing.T) {
	c := newCluster(t, "tsunasked")
	routes, err := c.pod.Netlink().RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: routeProtocol},
		netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		t.Fatal(err)
	}
	rules, err := listRules(c.pod.Netlink())
	if err != nil {
		t.Fatal(err)
	}
	// One for each family and for each of its subnets in one table, one for each
	// peer and subnet that the cluster has not in the other, and the ranges named.
	if got, want := fmt.Sprint(len(routes), len(rules)), "8 10"; got != want {
		t.Errorf("routes and rules: %s, want %s\n%s", got, want, show(t, c.pod.Netlink()))
	}
	if missing, err := c.router.Fence(); err != nil || missing != nil {
		t.Errorf("a pod without an exit node is fenced: %v (%v)", missing, err)
	}
	if !c.router.filters() || c.router.Trouble() != "" {
		t.Error("a pod that is to forward nothing does not")
	}
}
