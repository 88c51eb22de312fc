// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// mainPriority is that of the kernel's own rule for the main table
	// (linux/net/ipv4/fib_rules.c).
	mainPriority = 32766
	// rulePriority is that of our rules, which count in the order in which
	// they were added: directly before the main table. Rules that a CNI plugin, a
	// service mesh or a VPN adds, before or after, without a priority of their own
	// come first.
	rulePriority = mainPriority - 1
	// firstPriority is that of those that count before the others of ours.
	firstPriority = rulePriority - 1
)

// rule is one of ours, comparable.
type rule struct {
	v6        bool
	src       netip.Prefix // zero for any
	forwarded bool         // only what does not come from the pod itself
	table     int
	next      int // priority to go on at, instead of table
	// first is one of those that count before the others of ours, so that each of
	// the two groups can be set up anew while the other holds.
	first bool
	// dst is the destinations that cannot be reached if no rule before this one has
	// led to them.
	dst netip.Prefix
}

// wantedRules returns the rules of a pod with these addresses on ts0, in their
// order.
//
// What has an address of ts0 as its source belongs to the tailnet. While ts0 is
// down its routes are gone, and what goes on from there to a peer must not leave
// by eth0, in clear. What has
// another source, as every answer to a packet of another interface has, must not
// meet our routes. What has none yet is about to be given one by the route that
// it finds. An IPv4 rule for 0.0.0.0/32 is met by just that; in IPv6 no rule
// with a source is (net/ipv6/fib6_rules.c, fib6_rule_match), so that all others
// are led past the last one.
//
// What the pod forwards, for containers inside it, has a source that says
// nothing. It is treated as what the pod begins.
//
// In a closed pod what the pod begins is led to our routes in either family,
// whether ts0 has an address or not.
func wantedRules(addrs []netip.Prefix, closed bool) (rules []rule) {
	for _, whole := range tailscaleRanges() {
		v6 := whole.Addr().Is6()
		source := slices.IndexFunc(addrs, func(p netip.Prefix) bool { return p.Addr().Is6() == v6 })
		switch {
		case source >= 0:
			rules = append(rules,
				rule{v6: v6, src: addrs[source], table: tableBound, first: closed},
				rule{v6: v6, src: addrs[source], dst: whole, first: closed})
		case !closed || v6 && !kernelHasIPv6():
			continue
		}
		rules = append(rules, rule{v6: v6, forwarded: true, table: tablePeers})
		if !v6 {
			rules = append(rules, rule{src: netip.PrefixFrom(netip.IPv4Unspecified(), 32), table: tablePeers})
			continue
		}
		rules = append(rules,
			rule{v6: true, src: netip.MustParsePrefix("::/1"), next: mainPriority},
			rule{v6: true, src: netip.MustParsePrefix("8000::/1"), next: mainPriority},
			rule{v6: true, table: tablePeers})
	}
	return rules
}

// setRules makes our rules the wanted ones. It changes nothing if they are there,
// in their order; added reports whether they were not.
func setRules(h *netlink.Handle, want []rule) (added bool, err error) {
	ours, err := listRules(h)
	if err != nil {
		return false, err
	}
	for _, first := range []bool{true, false} {
		set, err := setGroup(h, ours, want, first)
		if err != nil {
			return added, err
		}
		added = added || set
	}
	return added, nil
}

// setGroup does that to those that count first, or to the others. ours are all that
// are there.
func setGroup(h *netlink.Handle, ours []netlink.Rule, want []rule, first bool) (added bool, err error) {
	var have []rule
	ours = slices.DeleteFunc(slices.Clone(ours), func(n netlink.Rule) bool { return ruleOf(&n).first != first })
	for i := range ours {
		have = append(have, ruleOf(&ours[i]))
	}
	want = slices.DeleteFunc(slices.Clone(want), func(r rule) bool { return r.first != first })
	if slices.Equal(have, want) {
		return false, nil
	}
	// In their order: the kernel deletes the first that has what is said of it, and
	// what is not said matches anything.
	for i := range ours {
		if err := h.RuleDel(&ours[i]); err != nil && !errors.Is(err, unix.ENOENT) {
			return false, fmt.Errorf("deleting rule %v: %w", ours[i], err)
		}
	}
	for _, r := range want {
		if err := h.RuleAdd(r.netlink()); err != nil {
			return false, fmt.Errorf("adding rule %v: %w", r.netlink(), noPolicyRouting(err))
		}
	}
	return len(want) > 0, nil
}

// listRules returns our rules, as the kernel lists them.
func listRules(h *netlink.Handle) ([]netlink.Rule, error) {
	all, err := h.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("listing the pod's rules: %w", noPolicyRouting(err))
	}
	return slices.DeleteFunc(all, func(r netlink.Rule) bool { return r.Protocol != routeProtocol }), nil
}

func (r rule) netlink() *netlink.Rule {
	n := netlink.NewRule()
	n.Priority, n.Protocol, n.Family = rulePriority, routeProtocol, netlink.FAMILY_V4
	if r.v6 {
		n.Family = netlink.FAMILY_V6
	}
	if r.first {
		n.Priority = firstPriority
	}
	if r.src.IsValid() {
		n.Src = ipNet(r.src)
	}
	if r.forwarded {
		n.Invert, n.IifName = true, "lo"
	}
	n.Table = r.table
	if r.dst.IsValid() {
		n.Dst, n.Type = ipNet(r.dst), unix.RTN_UNREACHABLE
	}
	if r.next != 0 {
		n.Goto = r.next
	}
	return n
}

// ruleOf is what netlink makes of a rule, taken back. A rule that differs in
// anything else differs in table.
func ruleOf(n *netlink.Rule) rule {
	r := rule{v6: n.Family == netlink.FAMILY_V6, table: n.Table, src: prefixOf(n.Src), dst: prefixOf(n.Dst)}
	r.first = n.Priority == firstPriority
	if r.forwarded = n.Invert && n.IifName == "lo"; n.Priority != rulePriority && !r.first {
		r.table = -1
	}
	if n.Goto > 0 {
		r.next, r.table = n.Goto, 0
	}
	return r
}

// noPolicyRouting names the remedy where the kernel has no rules (RTM_NEWRULE
// and RTM_GETRULE have no handler: EOPNOTSUPP, for one family EAFNOSUPPORT).
func noPolicyRouting(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("the kernel has no policy routing, use one with CONFIG_IP_MULTIPLE_TABLES and CONFIG_IPV6_MULTIPLE_TABLES: %w", err)
	}
	return err
}
