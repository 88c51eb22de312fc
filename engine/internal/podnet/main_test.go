// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"log/slog"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"tailscale.com/wgengine/router"

	"tailscale-nri/engine/internal/nstest"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(servesVar); path != "" {
		if err := serve(path); err != nil {
			fmt.Print(err)
		}
		os.Exit(0)
	}
	if os.Getenv(dnsServerEnv) != "" {
		os.Exit(runDNSServer())
	}
	os.Exit(nstest.Main(m))
}

// testPod is a pod with a link.
type testPod struct {
	*nstest.Pod
	link *Link
	v4   netip.Addr
	v6   netip.Addr
}

// newTestPod makes a pod with the n-th addresses.
func newTestPod(t testing.TB, n int) *testPod {
	t.Helper()
	p := &testPod{
		Pod: nstest.NewPod(t),
		v4:  netip.AddrFrom4([4]byte{100, 64, 0, byte(n)}),
		v6:  netip.MustParseAddr(fmt.Sprintf("fd7a:115c:a1e0::%x", n)),
	}
	p.link = mustEnsure(t, p.Pod, fmt.Sprintf("tspod%d", n))
	t.Cleanup(func() { Remove(p.link.Host) })
	r := p.link.Router(slog.New(slog.DiscardHandler), nil, nil)
	if err := r.Set(&router.Config{LocalAddrs: []netip.Prefix{
		netip.PrefixFrom(p.v4, 32), netip.PrefixFrom(p.v6, 128),
	}, Routes: tailscaleRanges()}); err != nil {
		t.Fatal(err)
	}
	awaitLocal(t, p.Netlink(), p.v6)
	return p
}

// awaitLocal waits for the address's own route: in IPv6 the kernel makes it in a
// thread of its own, and what comes before is lost.
func awaitLocal(t testing.TB, h *netlink.Handle, addr netip.Addr) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		routes, err := h.RouteGet(addr.AsSlice())
		if err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no local route for %v: %v (%v)", addr, routes, err)
		}
	}
}

// awaitLinkLocal waits for the route that eth0's link-local address brings, which the
// kernel makes in a thread of its own, and which is one of the pod's own routes.
func awaitLinkLocal(t testing.TB, h *netlink.Handle) {
	t.Helper()
	want := netip.MustParsePrefix("fe80::/64")
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		routes, err := h.RouteList(nil, netlink.FAMILY_V6)
		if slices.ContainsFunc(routes, func(r netlink.Route) bool { return prefixOf(r.Dst) == want }) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("eth0 has no link-local address: %v (%v)", routes, err)
		}
	}
}

func mustEnsure(t testing.TB, pod *nstest.Pod, host string) *Link {
	t.Helper()
	ns, err := FindNamespace(pod.Path())
	if err != nil {
		t.Fatal(err)
	}
	l, err := Ensure(ns, host, nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustOpen(t testing.TB, l *Link) *Device {
	t.Helper()
	d, err := l.Open(NoStore{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// show returns ts0's addresses, the routes over it, those that end a look-up in
// our tables, and our rules, as an admin would read them from "ip addr", "ip
// route show table all" and "ip rule" in the pod.
func show(t testing.TB, h *netlink.Handle) string {
	t.Helper()
	ts0, err := h.LinkByName(PodLink)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	addrs, err := addrsOf(h, ts0)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		fmt.Fprintf(&b, "addr %v\n", a)
	}
	routes, err := h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: routeProtocol},
		netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, r := range routes {
		table := map[int]string{tableBound: "bound", tablePeers: "peers", unix.RT_TABLE_MAIN: "main"}[r.Table]
		switch r.Type {
		case unix.RTN_UNREACHABLE:
			lines = append(lines, fmt.Sprintf("%s: unreachable %v\n", table, r.Dst))
		case unix.RTN_THROW:
			lines = append(lines, fmt.Sprintf("%s: throw %v\n", table, r.Dst))
		default:
			lines = append(lines, fmt.Sprintf("%s: %v src %v\n", table, r.Dst, r.Src))
		}
	}
	slices.Sort(lines)
	b.WriteString(strings.Join(lines, ""))
	rules, err := h.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for i := range rules {
		if r := ruleOf(&rules[i]); rules[i].Protocol == routeProtocol {
			fmt.Fprintf(&b, "rule %s\n", r)
		}
	}
	return b.String()
}

func (r rule) String() string {
	s := map[bool]string{false: "-4", true: "-6"}[r.v6] + " from all"
	if r.src.IsValid() {
		s = s[:2] + " from " + r.src.String()
	}
	if r.forwarded {
		s += " not iif lo"
	}
	if r.dst.IsValid() {
		return s + " to " + r.dst.String() + " unreachable"
	}
	if r.next != 0 {
		return fmt.Sprintf("%s goto %d", s, r.next)
	}
	return s + " lookup " + map[int]string{tableBound: "bound", tablePeers: "peers"}[r.table]
}
