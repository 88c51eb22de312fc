// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

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
	r := p.link.Router(slog.New(slog.DiscardHandler), nil)
	if err := r.Set(&router.Config{LocalAddrs: []netip.Prefix{
		netip.PrefixFrom(p.v4, 32), netip.PrefixFrom(p.v6, 128),
	}}); err != nil {
		t.Fatal(err)
	}
	return p
}

func mustEnsure(t testing.TB, pod *nstest.Pod, host string) *Link {
	t.Helper()
	ns, err := FindNamespace(pod.Path())
	if err != nil {
		t.Fatal(err)
	}
	l, err := Ensure(ns, host)
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

// show returns ts0's addresses and routes as an admin would read them from
// "ip addr" and "ip route" in the pod.
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
	routes, err := h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: ts0.Attrs().Index, Table: unix.RT_TABLE_MAIN},
		netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		fmt.Fprintf(&b, "route %v proto %d src %v\n", r.Dst, r.Protocol, r.Src)
	}
	return b.String()
}
