// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"go4.org/netipx"
	"golang.org/x/sys/unix"
	"tailscale.com/net/tsaddr"
	"tailscale.com/wgengine/router"
)

// Exit configures a pod that reaches everything over the tailnet.
type Exit struct {
	// Private are destinations that stay on the pod's other interfaces, unless the
	// tailnet has a route of its own to them, other than a default route.
	Private []netip.Prefix
}

// exit is a router's state of it.
type exit struct {
	Exit
	table nftTable

	mu   sync.Mutex
	plan []netip.Prefix // destinations that the table lets through
}

// UseExit has the pod reach everything over ts0, if the tailnet has a default route,
// and otherwise nothing. Three kinds of destinations stay on other interfaces: those
// that the router keeps there anyway, those of the pod's own routes except a default
// route, and x.Private. Call UseExit before the first Set and Fence.
//
// Rules, routes that name no interface, and a filter refuse the rest, so that they hold
// whatever happens to ts0 and to this process. Routes alone are not enough. When IPv6
// has chosen no source, it forgets that it has found an unreachable route, chooses any
// source, and looks again (net/ipv6/ip6_output.c, ip6_dst_lookup_tail). A program may
// also choose eth0's address itself. Answers have such a source, too, so the filter
// goes by who has begun the connection.
func (r *Router) UseExit(x Exit) {
	r.exit = &exit{Exit: x, table: nftTable{name: "tailscale-nri-exit", chains: []string{"closed"}}}
}

// UseExitOf has the router share the exit of another router of the same pod, and the
// destinations that stay on other interfaces. Two routers that differ in those would
// each undo the other's filter.
func (r *Router) UseExitOf(other *Router) { r.exit, r.kept = other.exit, other.kept }

// countedRoutes returns those of the pod's own routes that count. With an exit node two
// kinds do not, since they would open the pod: wide routes such as 0.0.0.0/1 and
// 128.0.0.0/1, which together are a default route, and prefixes that a neighbour's router
// advertisement puts on the pod's link.
func (r *Router) countedRoutes(h *netlink.Handle, there podRoutes) ([]netip.Prefix, error) {
	if r.exit == nil {
		return there.foreign, nil
	}
	given := map[netip.Prefix]bool{}
	if len(there.learned) > 0 {
		addrs, err := h.AddrList(nil, netlink.FAMILY_V6)
		if err != nil {
			return nil, fmt.Errorf("listing the pod's addresses: %w", err)
		}
		for _, a := range addrs {
			// The kernel has these flags on addresses that it has made of an advertised
			// prefix (net/ipv6/addrconf.c, addrconf_prefix_rcv_add_addr).
			if a.Flags&(unix.IFA_F_MANAGETEMPADDR|unix.IFA_F_TEMPORARY) == 0 {
				given[prefixOf(a.IPNet).Masked()] = true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(there.foreign), func(p netip.Prefix) bool {
		const narrow4, narrow6 = 8, 32 // no cluster has wider ranges that are not private
		wide := p.Addr().Is4() && p.Bits() < narrow4 || p.Addr().Is6() && p.Bits() < narrow6
		return wide && !coveredBy(p, r.exit.Private) || there.learned[p] && !given[p]
	}), nil
}

// mostPassed bounds what a pod's filter lets through. The filter is a transaction of
// one message, which a socket's buffer holds. What is beyond that is dropped.
const mostPassed = 250

// filter has the pod drop packets of connections that it begins, if they would leave by
// another interface than ts0, unless their destination is one that stays on those
// interfaces. missing reports whether the filter was missing.
func (x *exit) filter(ns Namespace, kept, foreign []netip.Prefix) (missing bool, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	var set netipx.IPSetBuilder
	for _, p := range slices.Concat(kept, x.Private, foreign) {
		set.AddPrefix(p)
	}
	union, err := set.IPSet()
	if err != nil {
		return false, err
	}
	plan := union.Prefixes()
	if plan = plan[:min(len(plan), mostPassed)]; slices.Equal(plan, x.plan) && x.table.intact(ns) {
		return false, nil
	}
	missing = !x.table.intact(ns)
	x.plan = plan
	return missing, x.table.install(ns, x.chains)
}

func (x *exit) chains(v6 bool) []nftChain {
	var rules [][]expr.Any
	add := func(parts ...[]expr.Any) { rules = append(rules, slices.Concat(parts...)) }
	add(outBy(PodLink), accept())
	add(outBy("lo"), accept())
	for _, p := range ofFamily(x.plan, v6) {
		add(toAny(p), accept())
	}
	// Neighbour discovery has no connection, and is left alone. Packets that conntrack
	// calls invalid are dropped: a program can make them with a raw socket.
	add(invalid(), drop())
	add(direction(ctOriginal), drop())
	return []nftChain{{"closed", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, nftables.ChainPriorityFilter, rules}}
}

// everything returns the destinations of the default routes.
func everything() []netip.Prefix {
	return []netip.Prefix{tsaddr.AllIPv4(), tsaddr.AllIPv6()}
}

// defaultOf returns the default destination of an address family (AF_INET, AF_INET6).
func defaultOf(family byte) netip.Prefix {
	if family == unix.AF_INET {
		return tsaddr.AllIPv4()
	}
	return tsaddr.AllIPv6()
}

// kernelHasIPv6 reports whether the kernel has IPv6 at all (ipv6.disable=1). Without
// it, routes that refuse IPv6 are neither needed nor possible.
var kernelHasIPv6 = sync.OnceValue(func() bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return !errors.Is(err, unix.EAFNOSUPPORT)
	}
	unix.Close(fd)
	return true
})

// close has the family refuse destinations without another way, if the router has an
// exit.
func (f *family) close(exit *exit, of func(netip.Prefix) bool) {
	if exit == nil || f.whole.Addr().Is6() && !kernelHasIPv6() {
		return
	}
	f.closed = everything()[slices.IndexFunc(everything(), of)]
	for _, p := range exit.Private {
		if of(p) {
			f.private = append(f.private, p.Masked())
		}
	}
}

// layOutClosed adds the routes that refuse, and those that lead past them.
func (f *family) layOutClosed(routes map[routeKey]netip.Addr) {
	if !f.closed.IsValid() {
		return
	}
	for _, table := range []int{tableBound, tablePeers} {
		routes[routeKey{table: table, dst: f.closed, closed: true}] = netip.Addr{}
	}
	advertised := slices.DeleteFunc(slices.Clone(f.tailnet), func(p netip.Prefix) bool { return p.Bits() == 0 })
	for _, p := range f.private {
		if !coveredBy(p, advertised) {
			routes[routeKey{table: tablePeers, dst: p}] = netip.Addr{}
		}
	}
}

// closedRules is what the guard reports as missing.
const closedRules = "rules or routes that refuse traffic past the exit node"

// Fence puts into the pod the rules, routes and the filter that refuse everything that is
// to go by an exit node, unless they are there. It is called before ts0 has an address,
// and when they were removed. It returns what was missing, and changes nothing else.
// Without [Router.UseExit] it does nothing.
func (r *Router) Fence() (missing []string, err error) {
	if r.exit == nil {
		return nil, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	err = r.ns.withHandle(func(h *netlink.Handle) error {
		missing, err = r.fence(h)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("closing the pod to traffic past its exit node: %w", err)
	}
	return missing, nil
}

func (r *Router) fence(h *netlink.Handle) (missing []string, err error) {
	index := 0
	ts0, err := linkByName(h.LinkByName, PodLink)
	if err != nil {
		return nil, err
	}
	if ts0 != nil {
		index = ts0.Attrs().Index
	}
	there, err := listRoutes(h, index, everything())
	if err != nil {
		return nil, err
	}
	foreign, err := r.countedRoutes(h, there)
	if err != nil {
		return nil, err
	}
	unfiltered, err := r.exit.filter(r.ns, r.kept, foreign)
	if err != nil {
		return nil, err
	}
	if unfiltered {
		missing = []string{closedRules}
	}
	bare := Router{kept: r.kept, exit: r.exit, cfg: &router.Config{}, logger: r.logger, warned: r.warned}
	want := bare.layOut(nil, foreign)
	there.dropPassed(want)
	rules := wantedRules(nil, true)
	r.wanted.Store(&installed{routes: want, within: everything()})
	ours, err := listRules(h)
	if err != nil {
		return nil, err
	}
	whole, lost := fenced(want, there.ours, rules, ours)
	if whole {
		return missing, nil
	}
	if lost {
		missing = []string{closedRules}
	}
	for _, route := range there.listed {
		delete(want, keyOf(&route)) // perhaps by one over ts0, which is preferred
	}
	if err := addRoutes(h, 0, want, nil); err != nil {
		return nil, err
	}
	if _, err := setGroup(h, ours, rules, false); err != nil {
		return nil, err
	}
	return missing, nil
}

// dropPassed removes from want destinations to which the tailnet has a wider route.
func (p podRoutes) dropPassed(want map[routeKey]netip.Addr) {
	var advertised []netip.Prefix
	for key, src := range p.ours {
		if src.IsValid() && key.dst.Bits() > 0 {
			advertised = append(advertised, key.dst)
		}
	}
	maps.DeleteFunc(want, func(key routeKey, _ netip.Addr) bool { return coveredBy(key.dst, advertised) })
}

// fenced reports whether all is there, and if not, whether routes or rules that refuse
// are missing. Those that lead past them come with the pod's own routes.
func fenced(want, have map[routeKey]netip.Addr, rules []rule, ours []netlink.Rule) (whole, lost bool) {
	whole = true
	for key := range want {
		if _, there := have[key]; !there {
			whole, lost = false, lost || key.closed
		}
	}
	for _, r := range rules {
		if !slices.ContainsFunc(ours, func(n netlink.Rule) bool { return ruleOf(&n) == r }) {
			whole, lost = false, true
		}
	}
	return whole, lost
}
