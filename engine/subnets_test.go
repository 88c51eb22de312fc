// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"tailscale-nri/engine/internal/nstest"
	"tailscale-nri/k3d/lab/control"
)

const (
	ethAddr, ethAddr6       = "10.9.0.2", "fc00:9::2" // of a pod's eth0
	worldAddr, worldAddr6   = "198.51.100.1", "2001:db8:9::1"
	officeAddr, officeAddr6 = "192.0.2.9", "2001:db8:5::9" // in subnets of a peer's
	shopAddr                = "192.0.2.200"                // in that, and in a range of the cluster's
	serviceAddr             = "10.43.0.10"                 // of the cluster's
	office, office6, shop   = "192.0.2.0/24", "2001:db8:5::/64", "192.0.2.128/25"
)

// A pod that accepts routes reaches the subnets of its peers, from when they are
// approved and as long as they are. Destinations of the cluster stay with the cluster.
// Another pod notices nothing.
func TestAcceptRoutes(t *testing.T) {
	w := newWorld(t)
	w.boot(func(c *Config) { c.ClusterRanges = []netip.Prefix{netip.MustParsePrefix(shop)} })
	router := w.startStock("router")
	give(t, router.Pod, officeAddr, officeAddr6, shopAddr)
	serveEcho(t, router.Pod)
	device := router.up("--advertise-routes=" + office + "," + office6 + ",10.9.0.0/16")

	a, podA := w.pod("a")
	w.site(a, officeAddr, officeAddr6, shopAddr, worldAddr)
	podA.Features.AcceptRoutes = true
	b, podB := w.pod("b")
	w.site(b, officeAddr)
	w.mustAttach(podA)
	w.mustAttach(podB)
	own := w.await(podA.UID, Running).Addresses
	w.await(podB.UID, Running)

	assertCalled(t, "before approval", a, map[string]string{officeAddr: ethAddr, officeAddr6: ethAddr6})
	w.approve(device.ID, office, office6, "10.9.0.0/16")
	t.Logf("approved: %v", w.untilCalled(a, officeAddr, own[0].String()))
	w.untilCalled(a, officeAddr6, own[1].String())
	assertCalled(t, "after approval", a, map[string]string{shopAddr: ethAddr, worldAddr: ethAddr, "10.9.0.1": ethAddr})
	assertCalled(t, "without asking for it", b, map[string]string{officeAddr: ethAddr})

	moved := []netip.Addr{netip.MustParseAddr("100.99.0.7"), own[1]}
	if err := w.control.SetAddresses(w.device(podA.Hostname).ID, moved...); err != nil {
		t.Fatal(err)
	}
	t.Logf("readdressed: %v", w.untilCalled(a, officeAddr, "100.99.0.7"))
	w.approve(device.ID)
	t.Logf("withdrawn: %v", w.untilCalled(a, officeAddr, ethAddr))
}

// Traffic for an exit node goes through it or nowhere, from the pod's start on, whether
// the peer is known, approved, connected, or the engine there. The cluster stays
// reachable.
func TestExitNode(t *testing.T) {
	w := newWorld(t)
	w.boot()
	a, podA := w.pod("a")
	w.site(a, worldAddr, worldAddr6, serviceAddr)
	podA.Features.ExitNode = "gate"
	w.untilCalled(a, worldAddr, ethAddr)
	w.untilCalled(a, worldAddr6, ethAddr6)
	w.mustAttach(podA)
	closed := map[string]string{worldAddr: "", worldAddr6: "", serviceAddr: ethAddr, "10.9.0.1": ethAddr, "fc00:9::1": ethAddr6}
	assertCalled(t, "at its start", a, closed)
	own := w.await(podA.UID, Running).Addresses
	w.reasonSays(podA.UID, "exit node gate is not known", "check the name")
	assertCalled(t, "without the peer", a, closed)

	gate := w.startStock("gate")
	give(t, gate.Pod, worldAddr, worldAddr6)
	serveEcho(t, gate.Pod)
	device := gate.up("--advertise-exit-node")
	w.reasonSays(podA.UID, "exit node gate offers none", "approve")
	assertCalled(t, "before approval", a, closed)
	w.approve(device.ID, "0.0.0.0/0", "::/0")
	t.Logf("approved: %v", w.untilCalled(a, worldAddr, own[0].String()))
	w.untilCalled(a, worldAddr6, own[1].String())
	w.until("nothing is wrong", func() bool { return w.statusOf(podA.UID).Reason == "" }, func() string { return w.statusOf(podA.UID).Reason })
	open := map[string]string{worldAddr: own[0].String(), worldAddr6: own[1].String(), serviceAddr: ethAddr, "10.9.0.1": ethAddr}
	assertCalled(t, "with it", a, open)

	// An exit node that has IPv4 only.
	w.approve(device.ID, "0.0.0.0/0")
	w.untilCalled(a, worldAddr6, "")
	assertCalled(t, "without IPv6", a, map[string]string{worldAddr: own[0].String(), worldAddr6: "", "fc00:9::1": ethAddr6})
	w.approve(device.ID, "0.0.0.0/0", "::/0")
	w.untilCalled(a, worldAddr6, own[1].String())

	w.halt()
	assertCalled(t, "without the engine", a, closed)
	w.boot()
	w.await(podA.UID, Running)
	w.untilCalled(a, worldAddr, own[0].String())
	gate.kill()
	w.reasonSays(podA.UID, "exit node gate is offline")
	assertCalled(t, "while it is offline", a, closed)
	gate.start()
	w.untilCalled(a, worldAddr, own[0].String())
	w.approve(device.ID)
	w.reasonSays(podA.UID, "exit node gate offers none")
	assertCalled(t, "after it was withdrawn", a, closed)

	// Rules, routes and filter are removed.
	if err := flushNftables(a); err != nil {
		t.Fatal(err)
	}
	w.untilCalled(a, worldAddr6, "")
	assertCalled(t, "after nftables were flushed", a, closed)
	h := a.Netlink()
	for _, table := range []int{11600, 11601} {
		routes, err := h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			_ = h.RouteDel(&r)
		}
	}
	w.untilCalled(a, worldAddr, "")
	w.untilCalled(a, serviceAddr, ethAddr)
}

// A pod that has never been in the tailnet is guarded, too.
func TestFenceWithoutControlPlane(t *testing.T) {
	w := newWorld(t)
	if err := w.control.SetOutage(control.Refusing); err != nil {
		t.Fatal(err)
	}
	w.boot()
	a, podA := w.pod("a")
	w.site(a, worldAddr, worldAddr6, serviceAddr)
	podA.Features.ExitNode = "gate"
	w.untilCalled(a, worldAddr6, ethAddr6)
	w.mustAttach(podA)
	closed := map[string]string{worldAddr: "", worldAddr6: "", serviceAddr: ethAddr}
	assertCalled(t, "at its start", a, closed)
	h := a.Netlink()
	for range 2 {
		rules, err := h.RuleList(netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rules {
			if r.Protocol == 116 {
				err = errors.Join(err, h.RuleDel(&r))
			}
		}
		if err = errors.Join(err, flushNftables(a)); err != nil {
			t.Fatal(err)
		}
		w.untilCalled(a, worldAddr, "")
		w.untilCalled(a, worldAddr6, "")
		assertCalled(t, "restored", a, closed)
	}
}

// newGateway is a pod that forwards, with the cluster beyond its eth0, and a pod and
// a stock machine that accept routes and use it as their exit node where it is one.
func (w *world) newGateway(change func(*Features)) (gateway, client *nstest.Pod, pod Pod) {
	w.t.Helper()
	gateway, pod = w.pod("gateway")
	w.site(gateway, serviceAddr, "10.44.0.10", worldAddr, worldAddr6, "169.254.169.254")
	change(&pod.Features)
	w.mustAttach(pod)
	w.await(pod.UID, Running)
	client, podC := w.pod("client")
	podC.Features.AcceptRoutes = true
	if pod.Features.AdvertiseExitNode {
		podC.Features.ExitNode = pod.Hostname
	}
	w.mustAttach(podC)
	w.await(podC.UID, Running)
	return gateway, client, pod
}

// A pod that advertises subnets forwards to them for a stock peer and for another
// pod of its host, and to nothing else, whichever way packets between the pods go.
func TestSubnetRouter(t *testing.T) {
	for _, way := range []string{"local", "WireGuard"} {
		t.Run(way, func(t *testing.T) {
			w := newWorld(t)
			w.boot(func(c *Config) { c.NoLocalDelivery = way == "WireGuard" })
			host := hostNet(t)
			gateway, client, pod := w.newGateway(func(f *Features) {
				f.AdvertiseRoutes = []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16"), netip.MustParsePrefix("198.51.100.1/32"), netip.MustParsePrefix("2001:db8:9::/64")}
			})
			far := w.startStock("far")
			far.up("--accept-routes")
			w.reasonSays(pod.UID, "advertised, waits for approval: 10.43.0.0/16, 198.51.100.1/32, 2001:db8:9::/64", "autoApprovers")
			id := w.device(pod.Hostname).ID
			w.approve(id, "10.43.0.0/16", "198.51.100.1/32", "2001:db8:9::/64")
			for _, from := range []*nstest.Pod{client, far.Pod} {
				t.Logf("approved: %v", w.untilCalled(from, serviceAddr, ethAddr))
				w.untilCalled(from, worldAddr, ethAddr)
				w.untilCalled(from, worldAddr6, ethAddr6)
			}
			if now := hostNet(t); now != host {
				t.Errorf("the host had\n%s\nand has, with a router on it,\n%s", host, now)
			}
			w.until("nothing is wrong", func() bool { return w.statusOf(pod.UID).Reason == "" }, func() string { return w.statusOf(pod.UID).Reason })

			// The tailnet's policy holds for what is beyond the pod.
			w.control.SetPolicy(control.Rule{Src: []string{"*"}, Dst: []string{"198.51.100.0/24"}})
			for _, from := range []*nstest.Pod{client, far.Pod} {
				w.untilCalled(from, serviceAddr, "")
				w.untilCalled(from, worldAddr, ethAddr)
			}
			w.control.SetPolicy(control.AllowAll)
			w.untilCalled(client, serviceAddr, ethAddr)

			// What is removed comes back.
			if err := flushNftables(gateway); err != nil {
				t.Fatal(err)
			}
			w.untilCalled(client, serviceAddr, ethAddr)
			w.untilCalled(far.Pod, worldAddr6, ethAddr6)
			w.approve(id, "198.51.100.1/32")
			w.untilCalled(far.Pod, serviceAddr, "")
			w.untilCalled(client, serviceAddr, "")
		})
	}
}

// A pod that is an exit node forwards to the internet, and neither to the cluster nor
// to a cloud's metadata.
func TestPodAsExitNode(t *testing.T) {
	w := newWorld(t)
	w.boot()
	host := hostNet(t)
	_, client, pod := w.newGateway(func(f *Features) {
		f.AdvertiseExitNode = true
		f.AdvertiseRoutes = []netip.Prefix{netip.MustParsePrefix("10.44.0.0/16")}
	})
	far := w.startStock("far")
	far.up("--accept-routes")
	w.reasonSays(pod.UID, "advertised, waits for approval: 10.44.0.0/16, 0.0.0.0/0, ::/0")
	assertCalled(t, "before approval", client, map[string]string{worldAddr: ""})
	w.approve(w.device(pod.Hostname).ID, "10.44.0.0/16", "0.0.0.0/0", "::/0")
	var out string
	w.until("the stock machine takes it", func() (ok bool) {
		out, ok = far.try("set", "--exit-node="+pod.Hostname, "--exit-node-allow-lan-access=true")
		return ok
	}, func() string { return out })
	for _, from := range []*nstest.Pod{client, far.Pod} {
		w.untilCalled(from, worldAddr, ethAddr)
		w.untilCalled(from, worldAddr6, ethAddr6)
		w.untilCalled(from, "10.44.0.10", ethAddr)
	}
	assertCalled(t, "as an exit node", far.Pod, map[string]string{serviceAddr: "", "169.254.169.254": ""})
	assertCalled(t, "as an exit node", client, map[string]string{serviceAddr: ""})
	if now := hostNet(t); now != host {
		t.Errorf("the host had\n%s\nand has, with an exit node on it,\n%s", host, now)
	}
}

// With its shields up neither a stock machine nor a pod of its host can call a pod, and
// it can call both.
func TestShieldsUp(t *testing.T) {
	w := newWorld(t)
	w.boot()
	a, podA := w.pod("a")
	b, podB := w.pod("b")
	podA.Features.ShieldsUp = true
	far := w.startStock("far")
	far.up()
	for _, p := range []*nstest.Pod{a, b, far.Pod} {
		serveEcho(t, p)
	}
	w.mustAttach(podA)
	w.mustAttach(podB)
	own, local := w.await(podA.UID, Running).Addresses, w.await(podB.UID, Running).Addresses
	remote := w.device("far").Addresses
	for i := range 2 {
		w.untilCalled(b, remote[i].String(), local[i].String()) // so that all are connected
		w.untilCalled(a, remote[i].String(), own[i].String())
		w.untilCalled(a, local[i].String(), own[i].String())
		for who, from := range map[string]*nstest.Pod{"a pod of the host": b, "a stock machine": far.Pod} {
			if seen := called(from, own[i].String()); seen != "" {
				t.Errorf("%s has called a pod with its shields up, as %s", who, seen)
			}
		}
	}
	if out := w.statusOf(podB.UID); out.LocalOut.Packets == 0 && out.LocalIn.Packets == 0 {
		t.Error("nothing was delivered locally")
	}
}
