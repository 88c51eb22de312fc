// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"tailscale.com/net/tsaddr"
	"tailscale.com/wgengine/router"
)

// routeProtocol marks the routes that are ours (rtm_protocol, "proto 116" in
// ip(8)'s words); only those are ever deleted. Numbers from 5 on are free for
// routing daemons (linux/rtnetlink.h).
const routeProtocol = 116

// Router programs the addresses and routes of ts0. It implements
// [router.Router] for one pod: the engine says what should be, and Set makes
// it so, whatever is there.
type Router struct {
	ns     Namespace
	logger *slog.Logger
	notify func([]netip.Addr)

	mu     sync.Mutex
	closed bool
	warned map[string]bool
}

var _ router.Router = (*Router)(nil)

// Router returns the router of the link's pod. After each Set that put
// addresses on ts0 it calls notify, if that is not nil, with all of them, IPv4
// first.
func (l *Link) Router(logger *slog.Logger, notify func([]netip.Addr)) *Router {
	if notify == nil {
		notify = func([]netip.Addr) {}
	}
	return &Router{ns: l.NS, logger: logger, notify: notify, warned: map[string]bool{}}
}

// Up does nothing: the link is up before the engine starts.
func (r *Router) Up() error { return nil }

// Close freezes the router. The pod keeps its addresses and routes: the
// engine closes its router when it stops, and a restart must not be seen from
// within the pod.
func (r *Router) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return nil
}

// Set makes ts0's addresses and routes those of cfg. A nil config, or one
// without addresses, changes nothing: the engine sends it at its start and at
// its end. It returns an error that wraps [ErrGone] if the pod is gone.
//
// cfg.LocalRoutes are ignored: they are the networks of this process, not of
// the pod.
func (r *Router) Set(cfg *router.Config) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || cfg == nil || len(cfg.LocalAddrs) == 0 {
		return nil
	}
	var addrs []netip.Addr
	err := r.ns.withHandle(func(h *netlink.Handle) (err error) {
		addrs, err = r.reconcile(h, cfg)
		return err
	})
	if err != nil {
		return fmt.Errorf("programming %s: %w", PodLink, err)
	}
	r.notify(addrs)
	return nil
}

// reconcile adds the new before it takes away the old: with an address go the
// IPv4 routes that name it as their source.
func (r *Router) reconcile(h *netlink.Handle, cfg *router.Config) ([]netip.Addr, error) {
	ts0, err := h.LinkByName(PodLink)
	if err != nil {
		return nil, goneIfNotFound(err)
	}
	want, err := r.addAddrs(h, ts0, cfg.LocalAddrs)
	if err != nil {
		return nil, err
	}
	routes, err := r.wantedRoutes(h, ts0, cfg.Routes, want)
	if err != nil {
		return nil, err
	}
	for i := range routes {
		if err := h.RouteReplace(&routes[i]); err != nil {
			return nil, fmt.Errorf("adding route %v: %w", routes[i].Dst, err)
		}
	}
	if err := deleteOtherRoutes(h, ts0, routes); err != nil {
		return nil, err
	}
	if err := deleteOtherAddrs(h, ts0, want); err != nil {
		return nil, err
	}
	addrs := make([]netip.Addr, len(want))
	for i, p := range want {
		addrs[i] = p.Addr()
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs, nil
}

// addAddrs adds the addresses that are missing, and returns those that ts0
// then has of want. Where the pod has no IPv6 it leaves IPv6 out.
func (r *Router) addAddrs(h *netlink.Handle, ts0 netlink.Link, want []netip.Prefix) (have []netip.Prefix, err error) {
	present, err := addrsOf(h, ts0)
	if err != nil {
		return nil, err
	}
	for _, p := range want {
		if slices.Contains(present, p) {
			have = append(have, p)
			continue
		}
		addr := &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE}
		err := h.AddrAdd(ts0, addr)
		switch {
		case err == nil, errors.Is(err, unix.EEXIST):
			have = append(have, p)
		case p.Addr().Is6() && isIPv6Off(err):
			r.warnOnce("the pod has no IPv6: its node gets IPv4 only", "address", p.Addr().String())
		default:
			return nil, fmt.Errorf("adding address %v: %w", p, err)
		}
	}
	return have, nil
}

// wantedRoutes returns the routes for the peers' prefixes. Peers' own
// addresses are covered by one route a family, unless the cluster uses that
// range itself: then each peer has its own.
func (r *Router) wantedRoutes(h *netlink.Handle, ts0 netlink.Link, prefixes, addrs []netip.Prefix) ([]netlink.Route, error) {
	var routes []netlink.Route
	for _, family := range []struct {
		number int
		whole  netip.Prefix
	}{
		{netlink.FAMILY_V4, tsaddr.CGNATRange()},
		{netlink.FAMILY_V6, tsaddr.TailscaleULARange()},
	} {
		source := slices.IndexFunc(addrs, func(p netip.Prefix) bool { return p.Addr().Is4() == family.whole.Addr().Is4() })
		if source < 0 {
			continue // no address, no route
		}
		foreign, err := foreignRoutes(h, ts0, family.number)
		if err != nil {
			return nil, err
		}
		overlap, err := overlaps(h, ts0, family.number, foreign, family.whole)
		if err != nil {
			return nil, err
		}
		if overlap.IsValid() {
			r.warnOnce("the cluster uses a part of Tailscale's range: one route per peer instead of one for all",
				"range", family.whole.String(), "used", overlap.String())
		}
		for _, dst := range aggregate(prefixes, family.whole, !overlap.IsValid()) {
			if slices.ContainsFunc(foreign, func(r netlink.Route) bool { return prefixOf(r.Dst) == dst }) {
				r.warnOnce("the pod has a route of its own to a part of the tailnet: that part stays unreachable", "prefix", dst.String())
				continue
			}
			routes = append(routes, linkRoute(ts0, dst, addrs[source].Addr()))
		}
	}
	return routes, nil
}

// aggregate returns the prefixes of whole's family, those within whole
// replaced by it if all is true.
func aggregate(prefixes []netip.Prefix, whole netip.Prefix, all bool) (out []netip.Prefix) {
	if all {
		out = append(out, whole)
	}
	for _, p := range prefixes {
		inside := whole.Contains(p.Addr()) && p.Bits() >= whole.Bits()
		if p.Addr().Is4() == whole.Addr().Is4() && !(all && inside) {
			out = append(out, p.Masked())
		}
	}
	return out
}

func linkRoute(ts0 netlink.Link, dst netip.Prefix, src netip.Addr) netlink.Route {
	route := netlink.Route{
		LinkIndex: ts0.Attrs().Index,
		Dst:       ipNet(dst),
		Src:       src.AsSlice(),
		Protocol:  routeProtocol,
		Table:     unix.RT_TABLE_MAIN,
	}
	if dst.Addr().Is4() {
		route.Scope = netlink.SCOPE_LINK
	}
	return route
}

// foreignRoutes returns the pod's routes that are not ours. One of them may be
// the way to its gateway.
func foreignRoutes(h *netlink.Handle, ts0 netlink.Link, family int) ([]netlink.Route, error) {
	routes, err := h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("listing the pod's routes: %w", err)
	}
	return slices.DeleteFunc(routes, func(r netlink.Route) bool {
		return r.Protocol == routeProtocol && r.LinkIndex == ts0.Attrs().Index
	}), nil
}

// overlaps returns an address on another of the pod's interfaces, or one of the
// foreign routes over them, that lies within whole; the zero Prefix if there is
// none.
func overlaps(h *netlink.Handle, ts0 netlink.Link, family int, foreign []netlink.Route, whole netip.Prefix) (netip.Prefix, error) {
	index := ts0.Attrs().Index
	addrs, err := h.AddrList(nil, family)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("listing the pod's addresses: %w", err)
	}
	for _, a := range addrs {
		if p := prefixOf(a.IPNet); a.LinkIndex != index && whole.Overlaps(p) {
			return p, nil
		}
	}
	for _, r := range foreign {
		if p := prefixOf(r.Dst); r.LinkIndex != index && p.Bits() >= whole.Bits() && whole.Overlaps(p) {
			return p, nil
		}
	}
	return netip.Prefix{}, nil
}

// deleteOtherRoutes deletes those of our routes that are not wanted. It
// deletes them as the kernel lists them: an IPv4 route of another scope would
// silently stay.
func deleteOtherRoutes(h *netlink.Handle, ts0 netlink.Link, want []netlink.Route) error {
	filter := &netlink.Route{LinkIndex: ts0.Attrs().Index, Protocol: routeProtocol}
	have, err := h.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("listing routes: %w", err)
	}
	for i := range have {
		wanted := slices.ContainsFunc(want, func(r netlink.Route) bool { return prefixOf(r.Dst) == prefixOf(have[i].Dst) })
		if wanted {
			continue
		}
		if err := h.RouteDel(&have[i]); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("deleting route %v: %w", have[i].Dst, err)
		}
	}
	return nil
}

func deleteOtherAddrs(h *netlink.Handle, ts0 netlink.Link, want []netip.Prefix) error {
	have, err := addrsOf(h, ts0)
	if err != nil {
		return err
	}
	for _, p := range have {
		if slices.Contains(want, p) {
			continue
		}
		err := h.AddrDel(ts0, &netlink.Addr{IPNet: ipNet(p)})
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("deleting address %v: %w", p, err)
		}
	}
	return nil
}

func addrsOf(h *netlink.Handle, link netlink.Link) ([]netip.Prefix, error) {
	addrs, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	out := make([]netip.Prefix, len(addrs))
	for i, a := range addrs {
		out[i] = prefixOf(a.IPNet)
	}
	return out, nil
}

// warnOnce logs a fact about the pod's netns that does not change, once.
func (r *Router) warnOnce(msg string, args ...any) {
	if !r.warned[msg] {
		r.warned[msg] = true
		r.logger.Warn(msg, args...)
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefixOf returns the zero Prefix for nil.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	addr, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}
