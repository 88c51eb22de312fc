// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestTryKernel: this kernel has all of it, and nothing of it is seen here.
func TestTryKernel(t *testing.T) {
	before, err := Inspect()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{TrialGSO, TrialGRO, TrialNamespace, TrialLink, TrialSocket, TrialRules, TrialRules6, TrialNAT}
	var tried []string
	for _, trial := range TryKernel() {
		tried = append(tried, trial.Name)
		if trial.Err != nil {
			t.Errorf("%s: %v", trial.Name, trial.Err)
		}
	}
	if !slices.Equal(tried, want) {
		t.Errorf("tried %q, want %q", tried, want)
	}
	after, err := Inspect()
	if err != nil {
		t.Fatal(err)
	}
	if len(after.Links) != len(before.Links) || len(after.Rules) != len(before.Rules) {
		t.Errorf("it left something: %+v, before %+v", after, before)
	}
}

// TestInspect reads back what is put into the tests' netns.
func TestInspect(t *testing.T) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "seen0", 1350
	link := &netlink.Veth{LinkAttrs: attrs, PeerName: "seen1"}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	defer netlink.LinkDel(link)
	addr := netip.MustParsePrefix("192.0.2.8/24")
	rule := netlink.NewRule()
	rule.Priority, rule.Table = 5270, 52
	for _, err := range []error{
		netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(addr)}),
		netlink.LinkSetUp(link),
		netlink.RouteAdd(&netlink.Route{LinkIndex: link.Index, Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), Table: 52, Scope: netlink.SCOPE_LINK}),
		netlink.RuleAdd(rule),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	defer netlink.RuleDel(rule)
	v, err := Inspect()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(v.Links, func(l HostLinkView) bool {
		return l.Name == "seen0" && l.MTU == 1350 && l.Up && l.Type == "veth" && slices.Contains(l.Addrs, addr)
	}) {
		t.Errorf("links %+v", v.Links)
	}
	if !slices.ContainsFunc(v.Routes, func(r HostRoute) bool { return r.Table == 52 && r.Dst.Bits() == 0 && r.Link == "seen0" }) {
		t.Errorf("routes %+v", v.Routes)
	}
	if !slices.ContainsFunc(v.Rules, func(r HostRule) bool { return r.Priority == 5270 && r.Table == 52 && !r.V6 }) {
		t.Errorf("rules %+v", v.Rules)
	}
}
