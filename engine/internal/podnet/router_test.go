// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"tailscale.com/wgengine/router"

	"tailscale-nri/engine/internal/nstest"
)

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// rulesFor are the rules of a pod with these addresses on ts0, as show has them.
func rulesFor(v4, v6 string) string {
	var s string
	if v4 != "" {
		s = "rule -4 from " + v4 + "/32 lookup bound\nrule -4 from " + v4 + "/32 to 100.64.0.0/10 unreachable\nrule -4 from all not iif lo lookup peers\nrule -4 from 0.0.0.0/32 lookup peers\n"
	}
	if v6 != "" {
		s += "rule -6 from " + v6 + "/128 lookup bound\nrule -6 from " + v6 + "/128 to fd7a:115c:a1e0::/48 unreachable\nrule -6 from all not iif lo lookup peers\n" +
			"rule -6 from ::/1 goto 32766\nrule -6 from 8000::/1 goto 32766\nrule -6 from all lookup peers\n"
	}
	return s
}

// Each step starts from what the one before left.
func TestRouterStates(t *testing.T) {
	pod := nstest.NewPod(t)
	l := mustEnsure(t, pod, "tsrouter")
	var notified []netip.Addr
	kept := prefixes("100.80.0.0/12", "192.0.2.128/25", "10.0.0.0/8", "fd7a:115c:a1e0:b::/64")
	r := l.Router(slog.New(slog.DiscardHandler), kept, func(a []netip.Addr) { notified = a })
	h := pod.Netlink()

	const first = `
addr 100.64.0.7/32
addr fd7a:115c:a1e0::7/128
bound: 100.64.0.0/10 src 100.64.0.7
bound: fd7a:115c:a1e0::/48 src fd7a:115c:a1e0::7
peers: 100.64.0.8/32 src 100.64.0.7
peers: fd7a:115c:a1e0::/48 src fd7a:115c:a1e0::7
peers: throw fd7a:115c:a1e0:b::/64
`
	rules := rulesFor("100.64.0.7", "fd7a:115c:a1e0::7")
	for _, step := range []struct {
		name string
		cfg  *router.Config
		want string
	}{
		{"before the engine knows anything", nil, "\n"},
		{"without addresses", &router.Config{}, "\n"},
		{"addresses and peers", &router.Config{
			LocalAddrs: prefixes("100.64.0.7/32", "fd7a:115c:a1e0::7/128"),
			// The engine has one route for all peers in IPv6, and those to MagicDNS.
			Routes:      prefixes("100.64.0.8/32", "fd7a:115c:a1e0::/48", "100.100.100.100/32", "fd7a:115c:a1e0::53/128"),
			LocalRoutes: prefixes("10.0.0.0/8"),
		}, first + rules},
		{"the engine stops", nil, first + rules},
		{"accepted routes, and a peer that the cluster has", &router.Config{
			LocalAddrs: prefixes("100.64.0.7/32", "fd7a:115c:a1e0::7/128"),
			Routes:     prefixes("100.64.0.8/32", "100.90.0.1/32", "192.0.2.0/24", "2001:db8::/32"),
		}, `
addr 100.64.0.7/32
addr fd7a:115c:a1e0::7/128
bound: 100.64.0.0/10 src 100.64.0.7
bound: 192.0.2.0/24 src 100.64.0.7
bound: 2001:db8::/32 src fd7a:115c:a1e0::7
bound: fd7a:115c:a1e0::/48 src fd7a:115c:a1e0::7
peers: 100.64.0.8/32 src 100.64.0.7
peers: 192.0.2.0/24 src 100.64.0.7
peers: 2001:db8::/32 src fd7a:115c:a1e0::7
peers: throw 192.0.2.128/25
` + rules},
		{"the control plane wants one route for all", &router.Config{
			LocalAddrs: prefixes("100.64.0.7/32", "fd7a:115c:a1e0::7/128"),
			Routes:     prefixes("100.64.0.0/10"),
		}, `
addr 100.64.0.7/32
addr fd7a:115c:a1e0::7/128
bound: 100.64.0.0/10 src 100.64.0.7
bound: fd7a:115c:a1e0::/48 src fd7a:115c:a1e0::7
peers: 100.64.0.0/10 src 100.64.0.7
peers: throw 100.80.0.0/12
` + rules},
		{"both addresses change", &router.Config{
			LocalAddrs: prefixes("100.99.0.1/32", "fd7a:115c:a1e0::99/128"),
			Routes:     prefixes("100.64.0.8/32"),
		}, `
addr 100.99.0.1/32
addr fd7a:115c:a1e0::99/128
bound: 100.64.0.0/10 src 100.99.0.1
bound: fd7a:115c:a1e0::/48 src fd7a:115c:a1e0::99
peers: 100.64.0.8/32 src 100.99.0.1
` + rulesFor("100.99.0.1", "fd7a:115c:a1e0::99")},
		{"IPv6 and the peers are taken away", &router.Config{LocalAddrs: prefixes("100.99.0.1/32")}, `
addr 100.99.0.1/32
bound: 100.64.0.0/10 src 100.99.0.1
` + rulesFor("100.99.0.1", "")},
	} {
		for range 2 { // Set is idempotent
			if err := r.Set(step.cfg); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
			if diff := cmp.Diff(step.want, "\n"+show(t, h)); diff != "" {
				t.Fatalf("%s (-want +got):\n%s", step.name, diff)
			}
			// What was sent as a difference is what would be made of nothing.
			if err := restore(r); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
			if diff := cmp.Diff(step.want, "\n"+show(t, h)); diff != "" {
				t.Fatalf("%s, restored (-want +got):\n%s", step.name, diff)
			}
		}
	}
	if len(notified) != 1 || notified[0].String() != "100.99.0.1" {
		t.Errorf("notified of %v, want 100.99.0.1", notified)
	}
	r.Close()
	if err := errors.Join(r.Set(&router.Config{LocalAddrs: prefixes("100.64.0.1/32")}), restore(r)); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(show(t, h), "100.99.0.1") {
		t.Error("a closed router changed the pod")
	}
}

// A process of an earlier version had its routes in the main table. One of this
// version that died may have left routes to peers that are gone, and rules in
// another order.
func TestRouterTakesOver(t *testing.T) {
	pod := nstest.NewPod(t)
	l := mustEnsure(t, pod, "tstakeover")
	h := pod.Netlink()
	cfg := &router.Config{LocalAddrs: prefixes("100.64.0.7/32", "fd7a:115c:a1e0::7/128"), Routes: prefixes("100.64.0.8/32")}
	discard := slog.New(slog.DiscardHandler)
	if err := l.Router(discard, nil, nil).Set(cfg); err != nil {
		t.Fatal(err)
	}
	want := show(t, h)
	ts0, err := h.LinkByName(PodLink)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []routeKey{
		{table: unix.RT_TABLE_MAIN, dst: netip.MustParsePrefix("100.64.0.0/10")}, {table: unix.RT_TABLE_MAIN, dst: netip.MustParsePrefix("fd7a:115c:a1e0::/48")},
		{table: tablePeers, dst: netip.MustParsePrefix("100.64.0.9/32")}, {table: tableBound, dst: netip.MustParsePrefix("198.51.100.0/24")},
	} {
		src := cfg.LocalAddrs[0].Addr()
		if key.dst.Addr().Is6() {
			src = cfg.LocalAddrs[1].Addr()
		}
		route := key.route(ts0.Attrs().Index, src)
		if err := h.RouteAdd(&route); err != nil {
			t.Fatal(err)
		}
	}
	throw := routeKey{table: tablePeers, dst: netip.MustParsePrefix("100.96.0.0/16")}.route(0, netip.Addr{})
	theirs := netlink.NewRule()
	theirs.Priority, theirs.Mark, theirs.Table, theirs.Family = rulePriority, 0x111, 100, netlink.FAMILY_V6
	moved := wantedRules(cfg.LocalAddrs, false)[4].netlink()
	if err := errors.Join(h.RouteAdd(&throw), h.RuleAdd(theirs),
		h.RuleDel(moved),
		h.RuleAdd(rule{v6: true, table: 99}.netlink()), h.RuleAdd(moved)); err != nil {
		t.Fatal(err)
	}
	if show(t, h) == want {
		t.Fatal("nothing has changed")
	}
	if err := l.Router(discard, nil, nil).Set(cfg); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, show(t, h)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if rules, err := h.RuleListFiltered(netlink.FAMILY_V6, theirs, netlink.RT_FILTER_MARK); err != nil || len(rules) != 1 {
		t.Errorf("the rule of another is gone: %v (%v)", rules, err)
	}
}

// A pod's own routes, on ts0 or not, are not ours to delete.
func TestRouterLeavesForeignRoutes(t *testing.T) {
	pod := nstest.NewPod(t)
	l := mustEnsure(t, pod, "tsforeignrt")
	h := pod.Netlink()
	ts0, err := h.LinkByName(PodLink)
	if err != nil {
		t.Fatal(err)
	}
	dst := netip.MustParsePrefix("198.51.100.0/24")
	if err := h.RouteAdd(&netlink.Route{LinkIndex: ts0.Attrs().Index, Dst: ipNet(dst), Scope: netlink.SCOPE_LINK}); err != nil {
		t.Fatal(err)
	}
	r := l.Router(slog.New(slog.DiscardHandler), nil, nil)
	if err := r.Set(&router.Config{LocalAddrs: prefixes("100.64.0.7/32")}); err != nil {
		t.Fatal(err)
	}
	own, err := h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: ipNet(dst)}, netlink.RT_FILTER_DST)
	if err != nil || len(own) != 1 {
		t.Errorf("the pod's own route is gone: %v (%v)", own, err)
	}
}

// Where the pod's own interfaces have addresses of Tailscale's range, their
// networks win.
func TestRouterWhereTheClusterUsesCGNAT(t *testing.T) {
	pod := nstest.NewPod(t)
	h := pod.Netlink()
	eth0 := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "other"}
	if err := h.LinkAdd(eth0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.LinkSetUp(eth0), h.AddrAdd(eth0, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("100.80.3.4/24"))})); err != nil {
		t.Fatal(err)
	}
	l := mustEnsure(t, pod, "tscgnat")
	var log bytes.Buffer
	r := l.Router(slog.New(slog.NewTextHandler(&log, nil)), prefixes("100.96.0.0/16"), nil)
	cfg := &router.Config{
		LocalAddrs: prefixes("100.64.0.7/32"),
		Routes:     prefixes("100.64.0.8/32", "100.80.3.9/32", "100.96.0.10/32"),
	}
	for range 2 {
		if err := errors.Join(r.Set(cfg), restore(r)); err != nil {
			t.Fatal(err)
		}
	}
	want := "addr 100.64.0.7/32\nbound: 100.64.0.0/10 src 100.64.0.7\npeers: 100.64.0.8/32 src 100.64.0.7\n" + rulesFor("100.64.0.7", "")
	if diff := cmp.Diff(want, show(t, h)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n := strings.Count(log.String(), "100.80.3.9/32 100.96.0.10/32"); n != 1 {
		t.Errorf("what cannot be reached was logged %d times, want once:\n%s", n, log.String())
	}
}

func TestRouterWithoutIPv6(t *testing.T) {
	pod := nstest.NewPod(t)
	pod.Do(func() error {
		for _, which := range []string{"all", "default"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/disable_ipv6", []byte("1"), 0); err != nil {
				return err
			}
		}
		return nil
	})
	l := mustEnsure(t, pod, "tsnov6")
	var log bytes.Buffer
	r := l.Router(slog.New(slog.NewTextHandler(&log, nil)), nil, nil)
	for range 2 {
		if err := r.Set(&router.Config{LocalAddrs: prefixes("100.64.0.7/32", "fd7a:115c:a1e0::7/128")}); err != nil {
			t.Fatal(err)
		}
	}
	want := "addr 100.64.0.7/32\nbound: 100.64.0.0/10 src 100.64.0.7\n" + rulesFor("100.64.0.7", "")
	if diff := cmp.Diff(want, show(t, pod.Netlink())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n := strings.Count(log.String(), "no IPv6"); n != 1 {
		t.Errorf("logged %d times, want once:\n%s", n, log.String())
	}
}

// Where the cluster uses CGNAT addresses, a peer may have the address of the
// pod's gateway: the cluster's route wins.
func TestRouterLeavesTheGateway(t *testing.T) {
	pod := nstest.NewPod(t)
	h := pod.Netlink()
	eth0 := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "other"}
	if err := h.LinkAdd(eth0); err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetUp(eth0); err != nil {
		t.Fatal(err)
	}
	if err := h.AddrAdd(eth0, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("100.64.1.7/32"))}); err != nil {
		t.Fatal(err)
	}
	gateway := netip.MustParsePrefix("100.64.1.1/32")
	link, err := h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(gateway), Scope: netlink.SCOPE_LINK}); err != nil {
		t.Fatal(err)
	}
	l := mustEnsure(t, pod, "tsgateway")
	var log bytes.Buffer
	r := l.Router(slog.New(slog.NewTextHandler(&log, nil)), nil, nil)
	for _, routes := range [][]netip.Prefix{prefixes("100.64.1.1/32", "100.64.0.8/32"), nil} {
		if err := r.Set(&router.Config{LocalAddrs: prefixes("100.99.0.7/32"), Routes: routes}); err != nil {
			t.Fatal(err)
		}
		if got, err := h.RouteGet(gateway.Addr().AsSlice()); err != nil || len(got) != 1 || got[0].LinkIndex != link.Attrs().Index {
			t.Errorf("with peers %v the way to the gateway is %v (%v)", routes, got, err)
		}
	}
	if !strings.Contains(log.String(), gateway.String()) {
		t.Errorf("nothing in the log of %v:\n%s", gateway, log.String())
	}
}

func restore(r *Router) error {
	_, err := r.Restore()
	return err
}
