// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"tailscale.com/wgengine/router"
)

// routeProtocol marks the routes and rules that are ours (rtm_protocol and
// FRA_PROTOCOL, "proto 116" in ip(8)'s words); only those are ever deleted.
// Numbers from 5 on are free for routing daemons (linux/rtnetlink.h).
const routeProtocol = 116

// Router programs the addresses of ts0, the routes over it and the rules that lead to
// them. It implements [router.Router] for one pod: the engine passes the wanted state,
// and Set reaches it from any state.
type Router struct {
	ns     Namespace
	logger *slog.Logger
	notify func([]netip.Addr)
	kept   []netip.Prefix
	exit   *exit    // see UseExit
	fwd    *forward // see Forward

	mu      sync.Mutex
	closed  bool
	warned  map[string]bool
	cfg     *router.Config // the last one with addresses
	set     *installed     // the pod's state, nil if it has to be read
	missing []string       // what the last reconcile has added

	// wanted is the last set, for goroutines that do not hold mu.
	wanted atomic.Pointer[installed]
}

// installed is the state that a Set has put into the pod, and what it has found there.
// It is not changed.
type installed struct {
	index   int            // of ts0
	asked   []netip.Prefix // addresses of the config
	addrs   []netip.Prefix // those of them that ts0 has
	within  []netip.Prefix // where the pod's own routes matter
	foreign []netip.Prefix // destinations of these routes
	routes  map[routeKey]netip.Addr
}

var _ router.Router = (*Router)(nil)

// Router returns the router of the link's pod. Destinations in kept stay on the pod's
// other interfaces, even if the tailnet has routes to them. After each Set that put
// addresses on ts0 it calls notify, if that is not nil, with all of them, IPv4 first.
func (l *Link) Router(logger *slog.Logger, kept []netip.Prefix, notify func([]netip.Addr)) *Router {
	if notify == nil {
		notify = func([]netip.Addr) {}
	}
	return &Router{ns: l.NS, logger: logger, kept: kept, notify: notify, warned: map[string]bool{}}
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
	r.cfg = &router.Config{LocalAddrs: slices.Clone(cfg.LocalAddrs), Routes: slices.Clone(cfg.Routes)}
	return r.program()
}

// Restore reads the pod's addresses, routes and rules, and changes them to what the
// last Set asked for. It returns what was missing. It does nothing before the first Set
// and after Close.
func (r *Router) Restore() (missing []string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.cfg == nil {
		return nil, nil
	}
	r.set, r.missing = nil, nil
	err = r.program()
	return r.missing, err
}

// program makes the pod's state that of r.cfg. It relies on what an earlier call has
// put there, and sends only the difference. r.mu is held.
func (r *Router) program() error {
	if r.set == nil || !slices.Equal(r.set.asked, r.cfg.LocalAddrs) ||
		!slices.Equal(r.set.within, r.within()) || r.update() != nil {
		r.set = nil
		if err := r.ns.withHandle(r.reconcile); err != nil {
			return fmt.Errorf("programming %s: %w", PodLink, err)
		}
	}
	addrs := make([]netip.Addr, len(r.set.addrs))
	for i, p := range r.set.addrs {
		addrs[i] = p.Addr()
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	r.missing = append(r.missing, r.forward()...)
	r.notify(addrs)
	return nil
}

// within returns the prefixes within which the pod's own routes matter.
func (r *Router) within() []netip.Prefix {
	if r.exit != nil {
		return everything()
	}
	return shared(r.cfg.Routes)
}

// update sends the changes since the last call. After an error the pod's state may be
// different from what this process remembers.
func (r *Router) update() error {
	next := r.layOut(r.set.addrs, r.set.foreign)
	if maps.Equal(next, r.set.routes) {
		return nil
	}
	return r.ns.withHandle(func(h *netlink.Handle) error {
		if err := addRoutes(h, r.set.index, next, r.set.routes); err != nil {
			return err
		}
		s := *r.set
		s.routes = next
		r.wanted.Store(&s)
		for key, src := range r.set.routes {
			if _, wanted := next[key]; wanted {
				continue
			}
			route := key.route(r.set.index, src)
			if err := h.RouteDel(&route); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("deleting route %v: %w", key.dst, err)
			}
		}
		r.set = &s
		return nil
	})
}

// reconcile reads the current state, and adds before it removes: with an address go the
// IPv4 routes that name it as their source.
func (r *Router) reconcile(h *netlink.Handle) error {
	ts0, err := h.LinkByName(PodLink)
	if err != nil {
		return goneIfNotFound(err)
	}
	s := &installed{index: ts0.Attrs().Index, asked: r.cfg.LocalAddrs}
	if s.addrs, err = r.addAddrs(h, ts0, r.cfg.LocalAddrs); err != nil {
		return err
	}
	s.within = r.within()
	there, err := listRoutes(h, s.index, s.within)
	if err != nil {
		return err
	}
	if s.foreign, err = r.countedRoutes(h, there); err != nil {
		return err
	}
	if len(there.foreign) == mostForeign {
		r.warnOnce("the pod has too many routes of its own within the tailnet's addresses: not all of them count", "count", mostForeign)
	}
	if r.exit != nil {
		unfiltered, err := r.exit.filter(r.ns, r.kept, s.foreign)
		if err != nil {
			return err
		}
		if unfiltered {
			r.missing = append(r.missing, closedRules)
		}
	}
	s.routes = r.layOut(s.addrs, s.foreign)
	if r.wanted.Load().lacks(s.routes, there.ours) {
		r.missing = append(r.missing, "routes")
	}
	if err := addRoutes(h, s.index, s.routes, there.ours); err != nil {
		return err
	}
	added, err := setRules(h, wantedRules(s.addrs, r.exit != nil))
	if err != nil {
		return err
	}
	if added {
		r.missing = append(r.missing, "rules")
	}
	r.wanted.Store(s)
	if err := there.deleteOthers(h, s.routes); err != nil {
		return err
	}
	if err := deleteOtherAddrs(h, ts0, s.addrs); err != nil {
		return err
	}
	r.set = s
	return nil
}

// lacks reports whether routes are missing that are wanted now and were wanted before.
// Routes that follow from another route of the pod's own were not.
func (i *installed) lacks(want, have map[routeKey]netip.Addr) bool {
	for key, src := range want {
		if i != nil {
			if was, before := i.routes[key]; !before || was != src {
				continue
			}
		}
		if is, there := have[key]; !there || is != src {
			return true
		}
	}
	return false
}

// addAddrs adds the addresses that are missing, and returns those of want that ts0 then
// has. In a pod without IPv6 it leaves out IPv6.
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
			r.missing = append(r.missing, p.Addr().String())
		case p.Addr().Is6() && isIPv6Off(err):
			r.warnOnce("the pod has no IPv6: its node gets IPv4 only", "address", p.Addr().String())
		default:
			return nil, fmt.Errorf("adding address %v: %w", p, err)
		}
	}
	return have, nil
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
