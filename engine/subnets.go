// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"net"
	"net/netip"
	"slices"
	"strings"

	"tailscale.com/net/tsaddr"
	"tailscale.com/types/netmap"
	"tailscale.com/types/views"

	"tailscale-nri/engine/internal/podnet"
)

// privateRanges stay on a pod's other interfaces if it uses an exit node, and an exit
// node does not forward to them. They cover the cluster's ranges if those were not named.
func privateRanges() (ranges []netip.Prefix) {
	for _, p := range []string{
		"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32", // and multicast
		"fc00::/7", "fe80::/10", "ff00::/8",
	} {
		ranges = append(ranges, netip.MustParsePrefix(p))
	}
	return ranges
}

// cluster returns the known addresses of the cluster: those that were named, those of
// the Services near the API server's, and those of this host.
func (e *Engine) cluster() []netip.Prefix {
	ranges := slices.Clone(e.cfg.ClusterRanges)
	if e.cfg.Services.IsValid() {
		ranges = append(ranges, e.cfg.Services)
	}
	const most = 100 // this host may have thousands
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		e.log.Warn("this host's addresses cannot be listed: pods with an exit node send packets for this host to it", "err", err)
	}
	for _, a := range addrs[:min(len(addrs), most)] {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().IsGlobalUnicast() && !tsaddr.IsTailscaleIP(p.Addr()) {
			ranges = append(ranges, netip.PrefixFrom(p.Addr(), p.Addr().BitLen()))
		}
	}
	return ranges
}

// newRouter returns the router of the pod, with the exit of its fence if it has one.
func (n *node) newRouter(link *podnet.Link, f *Features, fence *podnet.Router, notify func([]netip.Addr)) *podnet.Router {
	if !isRouted(f) {
		return link.Router(n.log(), n.e.cfg.ClusterRanges, notify)
	}
	if f.ExitNode != "" || advertises(f) {
		n.e.hearFilters()
	}
	cluster := n.e.cluster()
	// Packets that the pod forwards for its peers do not go back to them.
	r := link.Router(n.log(), slices.Concat(cluster, f.AdvertiseRoutes), notify)
	switch {
	case f.ExitNode == "":
	case fence != nil:
		r.UseExitOf(fence)
	default:
		r.UseExit(podnet.Exit{Private: privateRanges()})
	}
	if advertises(f) {
		r.Forward(podnet.Forward{
			To: f.AdvertiseRoutes, Everything: f.AdvertiseExitNode, Never: slices.Concat(cluster, privateRanges()),
		})
	}
	return r
}

// unapproved returns the routes that the node advertises and the tailnet does not use.
func unapproved(f *Features, nm *netmap.NetworkMap) (routes []string) {
	if nm == nil || !nm.SelfNode.Valid() {
		return nil
	}
	allowed := nm.SelfNode.AllowedIPs()
	for _, p := range advertisedRoutes(f) {
		if !views.SliceContains(allowed, p) {
			routes = append(routes, p.String())
		}
	}
	return routes
}

// routing is a session's state of the routes that its pod asks for.
type routing struct {
	exit       string // what is wrong with the exit node, "" if nothing is
	using      string // the exit node, "" if none is used
	unapproved string
}

// followRoutes reads from the netmap the state of the routes that the pod asks for.
func (s *session) followRoutes() {
	f := &s.features
	if f.ExitNode == "" && !advertises(f) {
		return
	}
	was := s.routing
	if f.ExitNode != "" {
		s.followExit()
	}
	if advertises(f) {
		s.routing.unapproved = strings.Join(unapproved(f, s.b.NetMapNoPeers()), ", ")
	}
	if s.routing != was {
		s.watch.look = true
	}
}

// routeCondition returns what is wrong with the routes that the pod asks for.
func (s *session) routeCondition() condition {
	if s.routing.exit != "" {
		return condition{kind: "exit node: " + s.routing.exit, text: s.routing.exit + "; until then nothing leaves the pod but to the cluster, private addresses and the tailnet"}
	}
	if why := s.n.serving.guarded.currentRouter().Trouble(); why != "" {
		return condition{kind: "forwarding", text: why}
	}
	if s.routing.unapproved != "" {
		return condition{kind: "routes", text: "advertised, waits for approval: " + s.routing.unapproved +
			" (approve it in the admin console under the device's subnets or exit node, or name it in the policy file's autoApprovers)"}
	}
	return condition{}
}

// hearFilters has the guards hear of changes of nftables, too.
func (e *Engine) hearFilters() {
	err := e.watch.HearFilters(e.ctx.Done(), func(err error) {
		e.log.Warn("lost the watch on the pods' nftables, opening another", "err", err)
	})
	if err != nil {
		e.log.Warn("changes of pods' nftables are not restored", "err", err)
	}
}

// NeverForwarded returns the part of p that no pod forwards to, whatever it advertises;
// false if that is nothing.
func NeverForwarded(p netip.Prefix) (never netip.Prefix, is bool) { return podnet.NeverForwarded(p) }
