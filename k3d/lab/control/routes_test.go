// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"fmt"
	"net/netip"
	"testing"

	"tailscale.com/tailcfg"
)

// TestRoutes follows the routes of a device: those that it advertises and an admin
// has approved are in its own netmap, and in its packet filter, until they are
// withdrawn.
func TestRoutes(t *testing.T) {
	ctx := testContext(t)
	s := start(t, Config{})
	n := newWireNode(t, s, "router")
	if err := n.login(ctx, s.NewKey("tag:x")); err != nil {
		t.Fatal(err)
	}
	id := s.Devices()[0].ID
	if !s.nodes.withDevice(id, func(n *node) {
		s.nodes.updateHostinfoLocked(n, &tailcfg.Hostinfo{
			Hostname: "router", RoutableIPs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16"), netip.MustParsePrefix("0.0.0.0/0")},
		})
	}) {
		t.Fatal("no device")
	}
	for _, tt := range []struct {
		approved string
		allowed  int
		primary  string
	}{
		{"10.44.0.0/16", 2, "[]"}, // which it does not advertise
		{"10.43.0.0/16", 3, "[10.43.0.0/16]"},
		{"0.0.0.0/0", 3, "[]"},
	} {
		if err := s.SetRoutes(id, netip.MustParsePrefix(tt.approved)); err != nil {
			t.Fatal(err)
		}
		s.nodes.withDevice(id, func(n *node) {
			if got := fmt.Sprint(n.PrimaryRoutes); len(n.AllowedIPs) != tt.allowed || got != tt.primary {
				t.Errorf("with %s approved: %v, primary %s", tt.approved, n.AllowedIPs, got)
			}
			if dst := s.nodes.filterLocked(n)[0].DstPorts; len(dst) != tt.allowed {
				t.Errorf("with %s approved the filter lets in to %v", tt.approved, dst)
			}
		})
	}
	if err := s.SetRoutes("nobody"); err == nil {
		t.Error("a device that is not there has routes")
	}
}
