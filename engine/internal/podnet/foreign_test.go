// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

// Of the pod's own routes, of which a pod may make any number, only those count
// that are within what the tailnet has, and not without end. One that comes later
// counts as well.
func TestForeignRoutes(t *testing.T) {
	c := guardCluster(t, "tsforeign")
	gw := net.ParseIP(nodeEth4)
	add := func(prefix netip.Prefix) {
		t.Helper()
		if err := c.pod.RouteAdd(&netlink.Route{Dst: ipNet(prefix), Gw: gw}); err != nil {
			t.Fatal(err)
		}
	}
	foreign := func() []netip.Prefix { return c.router.wanted.Load().foreign }
	for i := range mostForeign {
		add(netip.PrefixFrom(netip.AddrFrom4([4]byte{11, 0, byte(i >> 8), byte(i)}), 32))
	}
	later := netip.MustParsePrefix(acceptedAddr + "/32")
	add(later)
	c.until(t, "the later route does not count", func() error {
		if got := foreign(); !slices.Equal(got, []netip.Prefix{later}) {
			return fmt.Errorf("%d routes count: %v", len(got), got[:min(len(got), 3)])
		}
		return nil
	})
	for i := range mostForeign + 10 {
		add(netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 127, byte(i >> 8), byte(i)}), 32))
	}
	c.until(t, "too few routes count", func() error {
		if n := len(foreign()); n != mostForeign {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
}
