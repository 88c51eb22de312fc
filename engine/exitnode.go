// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tailscale.com/ipn"
	"tailscale.com/net/tsaddr"
	"tailscale.com/tailcfg"
	"tailscale.com/types/views"
)

// A LocalBackend accepts any exit node, known or not, and routes everything into the
// tunnel (ipn/ipnlocal/local.go, routerConfigLocked), even if no peer is at the other
// end. So a node's preferences name a peer only while it offers to be an exit node. In
// either case podnet lets nothing past it.

// followExit makes the peer that the pod names the exit node as soon as it can be one,
// and says what is wrong until then.
func (s *session) followExit() {
	nm := s.b.NetMapNoPeers()
	if nm == nil || !nm.SelfNode.Valid() {
		return
	}
	name := s.features.ExitNode
	suffix := nm.MagicDNSSuffix()
	peers := s.b.NodeBackend().AppendMatchingPeers(nil, func(p tailcfg.NodeView) bool { return isNamed(p, name, suffix) })
	peer, wrong := chooseExit(name, peers)
	var id tailcfg.StableNodeID
	if peer.Valid() {
		id = peer.StableID()
		wrong = offline(name, peer)
	}
	if s.b.Prefs().ExitNodeID() != id {
		p := &ipn.MaskedPrefs{Prefs: ipn.Prefs{ExitNodeID: id}, ExitNodeIDSet: true}
		if _, err := s.b.EditPrefs(p); err != nil {
			wrong = fmt.Sprintf("exit node %s cannot be used: %v", name, err)
			id = ""
		}
	}
	s.routing.exit = wrong
	if using := string(id); using != s.routing.using {
		s.routing.using = using
		if peer.Valid() {
			s.n.log().Info("using an exit node", "exitNode", strings.TrimSuffix(peer.Name(), "."), "exitNodeID", id,
				"notThroughIt", slices.Concat(s.n.e.cluster(), privateRanges()))
		}
	}
}

// keepExit has the node begin with the exit node that it had last, so that a restart
// interrupts nothing.
func (s *session) keepExit(p *ipn.Prefs) {
	if s.features.ExitNode != "" {
		p.ExitNodeID = s.b.Prefs().ExitNodeID()
	}
}

// isNamed reports whether a peer has that name, whole or its first label, or that
// address. The first label counts only for names of the tailnet's own, which have the
// suffix: others choose the names of devices that they share with it.
func isNamed(p tailcfg.NodeView, name, suffix string) bool {
	if addr, err := netip.ParseAddr(name); err == nil {
		return views.SliceContains(p.Addresses(), netip.PrefixFrom(addr, addr.BitLen()))
	}
	full := strings.TrimSuffix(p.Name(), ".")
	label, rest, _ := strings.Cut(full, ".")
	name = strings.TrimSuffix(name, ".")
	return strings.EqualFold(name, full) || strings.EqualFold(name, label) && strings.EqualFold(rest, suffix)
}

// chooseExit returns the peer of that name that is to be the exit node, or else what is
// wrong and what to do.
func chooseExit(name string, peers []tailcfg.NodeView) (_ tailcfg.NodeView, wrong string) {
	offering := slices.DeleteFunc(slices.Clone(peers), func(p tailcfg.NodeView) bool { return !offersExit(p) })
	switch {
	case len(offering) == 1:
		return offering[0], ""
	case len(offering) > 1:
		return tailcfg.NodeView{}, fmt.Sprintf("exit node %s is the name of %d peers: write the whole name or an address", name, len(offering))
	case len(peers) > 0:
		return tailcfg.NodeView{}, fmt.Sprintf("exit node %s offers none: run tailscale set --advertise-exit-node there and approve it in the admin console, "+
			"or grant the pod autogroup:internet", name)
	}
	return tailcfg.NodeView{}, fmt.Sprintf("exit node %s is not known: check the name, and that the policy file lets the pod see it", name)
}

func offersExit(p tailcfg.NodeView) bool {
	allowed := p.AllowedIPs()
	return views.SliceContains(allowed, tsaddr.AllIPv4()) || views.SliceContains(allowed, tsaddr.AllIPv6())
}

// offline returns what to say of an exit node that is offline, as the control plane
// knows, and "" otherwise.
func offline(name string, p tailcfg.NodeView) string {
	if online, known := p.Online().GetOk(); known && !online {
		return fmt.Sprintf("exit node %s is offline: start it", name)
	}
	return ""
}
