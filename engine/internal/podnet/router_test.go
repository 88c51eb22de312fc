// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"bytes"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"tailscale.com/wgengine/router"

	"tailscale-nri/engine/internal/nstest"
)

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// Each step starts from what the one before left.
func TestRouterStates(t *testing.T) {
	pod := nstest.NewPod(t)
	l := mustEnsure(t, pod, "tsrouter")
	var notified []netip.Addr
	r := l.Router(slog.New(slog.DiscardHandler), func(a []netip.Addr) { notified = a })
	h := pod.Netlink()

	const first = `
addr 100.64.0.7/32
addr fd7a:115c:a1e0::7/128
route 100.64.0.0/10 proto 116 src 100.64.0.7
route fd7a:115c:a1e0::/48 proto 116 src fd7a:115c:a1e0::7
`
	for _, step := range []struct {
		name string
		cfg  *router.Config
		want string
	}{
		{"before the engine knows anything", nil, "\n"},
		{"without addresses", &router.Config{}, "\n"},
		{"addresses and peers", &router.Config{
			LocalAddrs:  prefixes("100.64.0.7/32", "fd7a:115c:a1e0::7/128"),
			Routes:      prefixes("100.64.0.8/32", "fd7a:115c:a1e0::8/128"),
			LocalRoutes: prefixes("10.0.0.0/8"),
		}, first},
		{"the engine stops", nil, first},
		{"an accepted route", &router.Config{
			LocalAddrs: prefixes("100.64.0.7/32", "fd7a:115c:a1e0::7/128"),
			Routes:     prefixes("100.64.0.8/32", "192.0.2.0/24", "2001:db8::/32"),
		}, `
addr 100.64.0.7/32
addr fd7a:115c:a1e0::7/128
route 100.64.0.0/10 proto 116 src 100.64.0.7
route 192.0.2.0/24 proto 116 src 100.64.0.7
route 2001:db8::/32 proto 116 src fd7a:115c:a1e0::7
route fd7a:115c:a1e0::/48 proto 116 src fd7a:115c:a1e0::7
`},
		{"the route is withdrawn, both addresses change", &router.Config{
			LocalAddrs: prefixes("100.99.0.1/32", "fd7a:115c:a1e0::99/128"),
		}, `
addr 100.99.0.1/32
addr fd7a:115c:a1e0::99/128
route 100.64.0.0/10 proto 116 src 100.99.0.1
route fd7a:115c:a1e0::/48 proto 116 src fd7a:115c:a1e0::99
`},
		{"IPv6 is taken away", &router.Config{LocalAddrs: prefixes("100.99.0.1/32")}, `
addr 100.99.0.1/32
route 100.64.0.0/10 proto 116 src 100.99.0.1
`},
	} {
		for range 2 { // Set is idempotent
			if err := r.Set(step.cfg); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
			if diff := cmp.Diff(step.want, "\n"+show(t, h)); diff != "" {
				t.Fatalf("%s (-want +got):\n%s", step.name, diff)
			}
		}
	}
	if len(notified) != 1 || notified[0].String() != "100.99.0.1" {
		t.Errorf("notified of %v, want 100.99.0.1", notified)
	}
	r.Close()
	if err := r.Set(&router.Config{LocalAddrs: prefixes("100.64.0.1/32")}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(show(t, h), "100.99.0.1") {
		t.Error("a closed router changed the pod")
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
	r := l.Router(slog.New(slog.DiscardHandler), nil)
	if err := r.Set(&router.Config{LocalAddrs: prefixes("100.64.0.7/32")}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(show(t, h), dst.String()) {
		t.Error("the pod's own route is gone")
	}
}

func TestRouterWhereTheClusterUsesCGNAT(t *testing.T) {
	pod := nstest.NewPod(t)
	h := pod.Netlink()
	eth0 := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "other"}
	if err := h.LinkAdd(eth0); err != nil {
		t.Fatal(err)
	}
	if err := h.AddrAdd(eth0, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("100.80.3.4/24"))}); err != nil {
		t.Fatal(err)
	}
	l := mustEnsure(t, pod, "tscgnat")
	var log bytes.Buffer
	r := l.Router(slog.New(slog.NewTextHandler(&log, nil)), nil)
	cfg := &router.Config{
		LocalAddrs: prefixes("100.64.0.7/32", "fd7a:115c:a1e0::7/128"),
		Routes:     prefixes("100.64.0.8/32", "fd7a:115c:a1e0::8/128"),
	}
	for range 2 {
		if err := r.Set(cfg); err != nil {
			t.Fatal(err)
		}
	}
	want := `addr 100.64.0.7/32
addr fd7a:115c:a1e0::7/128
route 100.64.0.8/32 proto 116 src 100.64.0.7
route fd7a:115c:a1e0::/48 proto 116 src fd7a:115c:a1e0::7
`
	if diff := cmp.Diff(want, show(t, h)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n := strings.Count(log.String(), "one route per peer"); n != 1 {
		t.Errorf("the overlap was logged %d times, want once:\n%s", n, log.String())
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
	r := l.Router(slog.New(slog.NewTextHandler(&log, nil)), nil)
	for range 2 {
		if err := r.Set(&router.Config{LocalAddrs: prefixes("100.64.0.7/32", "fd7a:115c:a1e0::7/128")}); err != nil {
			t.Fatal(err)
		}
	}
	want := "addr 100.64.0.7/32\nroute 100.64.0.0/10 proto 116 src 100.64.0.7\n"
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
	r := l.Router(slog.New(slog.NewTextHandler(&log, nil)), nil)
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
