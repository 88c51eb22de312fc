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
	// mainPriority is the priority of the kernel's own rule for the main table
	// (linux/net/ipv4/fib_rules.c).
	mainPriority = 32766
	// rulePriority is the priority of our rules, which count in the order in which they
	// were added: directly before the main table. Rules that a CNI plugin, a service
	// mesh or a VPN adds, before or after, without a priority of their own come first.
	rulePriority = mainPriority - 1
	// firstPriority is the priority of those of our rules that count before the others.
	firstPriority = rulePriority - 1
)

// rule is a rule of ours, comparable.
type rule struct {
	v6        bool
	src       netip.Prefix // zero for any
	forwarded bool         // only packets that the pod forwards
	table     int
	next      int // priority to go on at, instead of table
	// first marks the rules that count before the others of ours, so that each of the
	// two groups can be set up again while the other holds.
	first bool
	// dst are destinations that cannot be reached if no rule before this one has led to
	// them.
	dst netip.Prefix
}

// wantedRules returns the rules of a pod with these addresses on ts0, in their
// order.
//
// Packets with an address of ts0 as their source belong to the tailnet. While ts0 is
// down its routes are gone, and such packets to a peer must not leave by eth0, in
// clear. Packets with another source, as every answer to a packet of another interface
// has, must not meet our routes. Packets without a source yet are given one by the
// route that they find. An IPv4 rule for 0.0.0.0/32 matches just these. In IPv6 no rule
// with a source does (net/ipv6/fib6_rules.c, fib6_rule_match), so all others are led
// past the last rule.
//
// Packets that the pod forwards, for containers inside it, have a source that says
// nothing. They are treated as packets that the pod begins.
//
// In a closed pod, packets that the pod begins are led to our routes in either family,
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

// setRules replaces our rules by the wanted ones. It changes nothing if they are there,
// in their order; added reports whether some were missing.
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

// setGroup is setRules for the rules that count first, or for the others. ours are all
// that are there.
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
	// In their order: the kernel deletes the first rule with the given attributes, and
	// attributes that are not given match anything.
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

// ruleOf turns netlink's form of a rule back. A rule that differs in anything else has
// another table.
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
