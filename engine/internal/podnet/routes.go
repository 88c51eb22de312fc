// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"tailscale.com/net/tsaddr"
)

// The pod's routes over ts0 are in two tables of their own, and rules lead to them (see
// rules.go). So they do not affect packets of the pod's other interfaces. By convention
// numbers above 255 are free.
const (
	// tableBound is for packets with an address of ts0 as their source: all of
	// Tailscale's range, and the other routes of the tailnet.
	tableBound = 11600
	// tablePeers is for packets that the pod begins and that have no source yet: the
	// routes of the tailnet, without those for destinations that stay on other
	// interfaces.
	tablePeers = 11601
)

// routeKey names a route.
type routeKey struct {
	table int
	dst   netip.Prefix
	// closed marks a route that refuses (RTN_UNREACHABLE), with a lower preference than
	// any other of that destination.
	closed bool
}

// closedMetric is above that of all others of our routes (1024 is IPv6's default).
const closedMetric = 1 << 16

// route returns the route over the link of that index with src as its source; with the
// zero Addr, a route that ends the look-up in its table (RTN_THROW).
func (k routeKey) route(index int, src netip.Addr) netlink.Route {
	route := netlink.Route{Dst: ipNet(k.dst), Table: k.table, Protocol: routeProtocol}
	if k.closed {
		route.Type, route.Priority = unix.RTN_UNREACHABLE, closedMetric
		return route
	}
	if !src.IsValid() {
		route.Type = unix.RTN_THROW
		return route
	}
	route.LinkIndex, route.Src = index, src.AsSlice()
	if k.dst.Addr().Is4() {
		route.Scope = netlink.SCOPE_LINK
	}
	return route
}

// tailscaleRanges are the ranges in which the tailnet's own addresses are.
func tailscaleRanges() []netip.Prefix {
	return []netip.Prefix{tsaddr.CGNATRange(), tsaddr.TailscaleULARange()}
}

// shared returns the prefixes within which the pod's own routes matter.
func shared(routes []netip.Prefix) []netip.Prefix {
	within := tailscaleRanges()
	for _, p := range routes {
		if !coveredBy(p, within) {
			within = append(within, p.Masked())
		}
	}
	return within
}

// layOut returns the routes, with their sources, for a pod that has addrs on ts0 and
// foreign routes of its own. A family without an address has only the routes that keep
// it closed.
func (r *Router) layOut(addrs, foreign []netip.Prefix) map[routeKey]netip.Addr {
	routes := map[routeKey]netip.Addr{}
	var unreachable []netip.Prefix
	for _, whole := range tailscaleRanges() {
		of := func(p netip.Prefix) bool { return p.Addr().Is4() == whole.Addr().Is4() }
		f := family{whole: whole}
		switch source := slices.IndexFunc(addrs, of); {
		case source >= 0:
			f.src = addrs[source].Addr()
			f.tailnet = r.tailnetRoutes(of)
		case r.exit == nil:
			continue
		}
		f.close(r.exit, of)
		for _, p := range r.kept {
			if of(p) {
				f.kept = append(f.kept, p.Masked())
			}
		}
		for _, p := range foreign {
			if of(p) {
				f.foreign = append(f.foreign, p)
			}
		}
		unreachable = append(unreachable, f.layOut(routes)...)
	}
	r.warnUnreachable(unreachable)
	return routes
}

// tailnetRoutes returns the tailnet's routes of a family. A default route counts only
// for a pod that asks for an exit node.
func (r *Router) tailnetRoutes(of func(netip.Prefix) bool) (routes []netip.Prefix) {
	for _, p := range r.cfg.Routes {
		// The service addresses are not the tailnet's: see dns.go.
		if of(p) && p.Addr() != tsaddr.TailscaleServiceIP() && p.Addr() != tsaddr.TailscaleServiceIPv6() &&
			(p.Bits() > 0 || r.exit != nil) {
			routes = append(routes, p.Masked())
		}
	}
	return routes
}

// family has the inputs for the routes of one address family.
type family struct {
	whole   netip.Prefix   // Tailscale's range
	src     netip.Addr     // ts0's address
	tailnet []netip.Prefix // the tailnet's routes
	kept    []netip.Prefix // destinations that stay on other interfaces
	foreign []netip.Prefix // the pod's own routes
	closed  netip.Prefix   // the default destination, if packets without another way are refused; otherwise zero
	private []netip.Prefix // destinations that then stay on other interfaces, unless the tailnet has a route to them
}

// layOut adds the family's routes, and returns the parts of the tailnet that the pod
// cannot begin to talk to.
//
// The pod's own routes count as they would in one table, where the longest prefix wins.
// Within Tailscale's range they always win, since they lead to the pod's gateway and
// neighbours.
func (f *family) layOut(routes map[routeKey]netip.Addr) (unreachable []netip.Prefix) {
	if f.src.IsValid() {
		routes[routeKey{table: tableBound, dst: f.whole}] = f.src
	}
	f.layOutClosed(routes)
	stays := slices.Clone(f.kept)
	for _, p := range f.foreign {
		if p.Bits() > f.whole.Bits() && f.whole.Contains(p.Addr()) {
			stays = append(stays, p)
		}
	}
	for _, p := range f.tailnet {
		if !covers(f.whole, p) {
			routes[routeKey{table: tableBound, dst: p}] = f.src
		}
		if coveredBy(p, stays) || slices.Contains(f.foreign, p) {
			unreachable = append(unreachable, p)
		} else {
			routes[routeKey{table: tablePeers, dst: p}] = f.src
		}
	}
	for _, p := range slices.Concat(stays, f.foreign) {
		// Only where a wider route would take it.
		if f.closed.IsValid() || coveredBy(p, f.tailnet) {
			routes[routeKey{table: tablePeers, dst: p}] = netip.Addr{}
		}
	}
	return unreachable
}

// covers reports whether all of p is in whole.
func covers(whole, p netip.Prefix) bool {
	return whole.Bits() <= p.Bits() && whole.Contains(p.Addr())
}

func coveredBy(p netip.Prefix, wider []netip.Prefix) bool {
	return slices.ContainsFunc(wider, func(w netip.Prefix) bool { return covers(w, p) })
}

// warnUnreachable logs which parts of the tailnet the pod cannot reach, without those
// that it has logged before.
func (r *Router) warnUnreachable(prefixes []netip.Prefix) {
	const named = 10 // at most, of any number
	var peers, subnets []string
	for _, p := range prefixes {
		if key := "unreachable " + p.String(); !r.warned[key] {
			r.warned[key] = true
			if coveredBy(p, tailscaleRanges()) {
				peers = append(peers, p.String())
			} else {
				subnets = append(subnets, p.String())
			}
		}
	}
	if len(peers) > 0 {
		r.logger.Warn("the cluster has a part of the tailnet's addresses: the pod cannot connect to these, they can connect to it",
			"prefixes", peers[:min(len(peers), named)], "count", len(peers))
	}
	if len(subnets) > 0 {
		r.logger.Warn("peers advertise subnets that the pod does not use: they are the cluster's, or the pod has a route of its own to them",
			"prefixes", subnets[:min(len(subnets), named)], "count", len(subnets))
	}
}

// addRoutes adds those of want that are not in have. Routes that end look-ups come
// first, so that no packet is misrouted meanwhile.
func addRoutes(h *netlink.Handle, index int, want, have map[routeKey]netip.Addr) error {
	for _, throws := range []bool{true, false} {
		for key, src := range want {
			if was, there := have[key]; there && was == src || src.IsValid() == throws {
				continue
			}
			route := key.route(index, src)
			if err := h.RouteReplace(&route); err != nil {
				return fmt.Errorf("adding route %v: %w", key.dst, err)
			}
		}
	}
	return nil
}

// keyOf names a route as the kernel lists it.
func keyOf(r *netlink.Route) routeKey {
	return routeKey{table: r.Table, dst: prefixOf(r.Dst), closed: r.Type == unix.RTN_UNREACHABLE}
}

// podRoutes are the routes found in a pod.
type podRoutes struct {
	ours    map[routeKey]netip.Addr
	listed  []netlink.Route // ours, as the kernel lists them
	foreign []netip.Prefix  // destinations of its own that matter
	// learned are the IPv6 routes, with true for those that follow only from an address
	// or a router advertisement.
	learned map[netip.Prefix]bool
}

// mostForeign is how many of the pod's own routes count. A pod that makes more of them
// within the tailnet's addresses does not need them all.
const mostForeign = 1000

// listRoutes reads all of the pod's tables, and keeps of the pod's own routes those
// within the given prefixes: a pod may have a million others. Earlier versions had
// their routes in the main table.
func listRoutes(h *netlink.Handle, index int, within []netip.Prefix) (podRoutes, error) {
	p := podRoutes{ours: map[routeKey]netip.Addr{}, learned: map[netip.Prefix]bool{}}
	err := h.RouteListFilteredIter(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE, func(route netlink.Route) bool {
		dst := prefixOf(route.Dst)
		ours := route.Protocol == routeProtocol
		switch {
		case ours && (route.Table == tableBound || route.Table == tablePeers):
			src, _ := netip.AddrFromSlice(route.Src)
			if key := keyOf(&route); key.closed || route.Type == unix.RTN_THROW || route.LinkIndex == index {
				p.ours[key] = src.Unmap()
			}
			p.listed = append(p.listed, route)
		case ours && route.LinkIndex == index:
			p.listed = append(p.listed, route)
		case route.Table == unix.RT_TABLE_MAIN && route.LinkIndex != index && dst.Bits() > 0:
			if len(p.foreign) < mostForeign && coveredBy(dst, within) {
				p.foreign = append(p.foreign, dst)
				p.learn(dst, int(route.Protocol))
			}
		}
		return true
	})
	if err != nil {
		return podRoutes{}, fmt.Errorf("listing the pod's routes: %w", err)
	}
	return p, nil
}

// learn notes whether a route of that destination was learned. One that was not learned
// decides.
func (p *podRoutes) learn(dst netip.Prefix, protocol int) {
	if dst.Addr().Is4() {
		return
	}
	learned := protocol == unix.RTPROT_KERNEL || protocol == unix.RTPROT_RA
	if was, there := p.learned[dst]; there {
		learned = learned && was
	}
	p.learned[dst] = learned
}

// deleteOthers deletes those of our routes that are not wanted. It deletes them as the
// kernel lists them: an IPv4 route of another scope would silently stay.
func (p podRoutes) deleteOthers(h *netlink.Handle, want map[routeKey]netip.Addr) error {
	for i := range p.listed {
		route := &p.listed[i]
		if _, wanted := want[keyOf(route)]; wanted {
			continue
		}
		if err := h.RouteDel(route); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("deleting route %v: %w", route.Dst, err)
		}
	}
	return nil
}
