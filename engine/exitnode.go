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

// A LocalBackend takes any exit node, known or not, and routes everything into the
// tunnel (ipn/ipnlocal/local.go, routerConfigLocked): nothing says that nobody is at
// the other end. So a node's preferences name a peer only while it offers to be one.
// Whether or not they do, podnet lets nothing past it.

// followExit makes the peer that the pod names the exit node, as soon as there is
// one, and says what is wrong as long as there is not.
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
				"kept", slices.Concat(s.n.e.cluster(), privateRanges()))
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
// address. The first label is a name of the tailnet's own, which has the suffix: those
// of devices that others share with it are the others' choice.
func isNamed(p tailcfg.NodeView, name, suffix string) bool {
	if addr, err := netip.ParseAddr(name); err == nil {
		return views.SliceContains(p.Addresses(), netip.PrefixFrom(addr, addr.BitLen()))
	}
	full := strings.TrimSuffix(p.Name(), ".")
	label, rest, _ := strings.Cut(full, ".")
	name = strings.TrimSuffix(name, ".")
	return strings.EqualFold(name, full) || strings.EqualFold(name, label) && strings.EqualFold(rest, suffix)
}

// chooseExit returns the one of the peers of that name that is to be the exit node,
// and otherwise what is wrong and what to do.
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

// offline says so of an exit node that the control plane knows to be.
func offline(name string, p tailcfg.NodeView) string {
	if online, known := p.Online().GetOk(); known && !online {
		return fmt.Sprintf("exit node %s is offline: start it", name)
	}
	return ""
}
