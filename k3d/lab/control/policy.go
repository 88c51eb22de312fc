// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"net/netip"
	"slices"
	"strings"

	"tailscale.com/tailcfg"
)

// Rule lets packets in, as a grant of a policy file does: from any device that
// Src names to any that Dst names. A name is "*" (all devices), a tag
// ("tag:web"), a device's ID, or an address or prefix, which stands for itself
// in Src and for those addresses and routes of devices that lie in it in Dst.
type Rule struct {
	Src, Dst []string
	// Proto are IP protocol numbers; none is TCP, UDP and ICMP of both
	// families.
	Proto []int
	// Ports are the destination ports; none is all.
	Ports []tailcfg.PortRange
}

// AllowAll is the policy that a tailnet starts with.
var AllowAll = Rule{Src: []string{"*"}, Dst: []string{"*"}}

// SetPolicy replaces the tailnet's policy; without rules no node lets anything
// in. Every node that polls is sent its new packet filter at once.
//
// Production also leaves out of a node's netmap the devices that no rule
// connects it with. Here every device stays visible until SetView hides it.
func (s *Server) SetPolicy(rules ...Rule) {
	t := s.nodes
	t.mu.Lock()
	defer t.mu.Unlock()
	t.policy = slices.Clone(rules)
	t.pokeLocked()
}

// filterLocked is the packet filter of n: what may come in.
func (t *table) filterLocked(n *node) []tailcfg.FilterRule {
	var out []tailcfg.FilterRule
	for _, r := range t.policy {
		f := tailcfg.FilterRule{IPProto: r.Proto, SrcIPs: t.sourcesLocked(r.Src)}
		ports := r.Ports
		if len(ports) == 0 {
			ports = []tailcfg.PortRange{tailcfg.PortRangeAny}
		}
		var dst []string
		for _, addr := range n.namedBy(r.Dst) {
			dst = append(dst, addr.String())
		}
		for _, ip := range append(dst, n.routesNamedBy(r.Dst)...) {
			for _, p := range ports {
				f.DstPorts = append(f.DstPorts, tailcfg.NetPortRange{IP: ip, Ports: p})
			}
		}
		if len(f.SrcIPs) > 0 && len(f.DstPorts) > 0 {
			out = append(out, f)
		}
	}
	return out
}

// sourcesLocked are the addresses that names stand for, in the form of
// tailcfg.FilterRule.SrcIPs.
func (t *table) sourcesLocked(names []string) []string {
	var out []string
	for _, name := range names {
		if _, isAddr := prefixNamed(name); isAddr || name == "*" {
			out = append(out, name)
			continue
		}
		for _, n := range t.byID {
			for _, addr := range n.namedBy([]string{name}) {
				out = append(out, addr.String())
			}
		}
	}
	slices.Sort(out) // or each look at the map would be a change
	return slices.Compact(out)
}

// namedBy returns the addresses of n that the names stand for.
func (n *node) namedBy(names []string) (out []netip.Addr) {
	for _, own := range n.Addresses {
		if slices.ContainsFunc(names, func(name string) bool {
			if p, ok := prefixNamed(name); ok {
				return p.Contains(own.Addr())
			}
			return name == "*" || name == string(n.StableID) || slices.Contains(n.Tags, name)
		}) {
			out = append(out, own.Addr())
		}
	}
	return out
}

// routesNamedBy returns what of n's routes the names stand for.
func (n *node) routesNamedBy(names []string) (out []string) {
	for _, route := range n.routes() {
		for _, name := range names {
			p, ok := prefixNamed(name)
			switch {
			case name == "*":
				out = append(out, route.String())
			case ok && p.Overlaps(route) && p.Bits() > route.Bits():
				out = append(out, p.String())
			case ok && p.Overlaps(route):
				out = append(out, route.String())
			}
		}
	}
	return out
}

// prefixNamed reads an address or a prefix.
func prefixNamed(name string) (netip.Prefix, bool) {
	if strings.Contains(name, "/") {
		p, err := netip.ParsePrefix(name)
		return p, err == nil
	}
	addr, err := netip.ParseAddr(name)
	if err != nil {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(addr, addr.BitLen()), true
}

// View is how a node is told of a peer, where that is not simply what the peer
// is. The zero View is the truth.
type View struct {
	// Hidden leaves the peer out of the node's netmap.
	Hidden bool
	// Expired tells of the peer that its key has expired, which the peer itself
	// does not hear: it goes on, and does not log in again.
	Expired bool
	// Jailed tells the node to let the peer begin nothing
	// (tailcfg.Node.IsJailed).
	Jailed bool
	// As is the one address that the node is told of the peer, in place of the
	// peer's own; the peer is told to appear to the node under it
	// (tailcfg.Node.SelfNodeV4MasqAddrForThisPeer, or V6).
	As netip.Addr
}

// sight is a node looking at a peer.
type sight struct{ node, peer tailcfg.NodeID }

// SetView changes how the node with one ID is told of the peer with another.
// It fails if there is no such device.
func (s *Server) SetView(nodeID, peerID string, v View) error {
	var from *node
	if err := s.change(nodeID, "tell of a peer", func(n *node) { from = n }); err != nil {
		return err
	}
	return s.change(peerID, "be told of", func(peer *node) {
		t := s.nodes
		was := t.views[sight{from.ID, peer.ID}]
		t.views[sight{from.ID, peer.ID}] = v
		t.retellLocked(from, peer)
		if v.As != was.As {
			t.retellLocked(peer, from) // it has to appear as another
		}
		t.pokeLocked()
	})
}

// retellLocked has n's streams tell of the peer again, whole.
func (t *table) retellLocked(n, peer *node) {
	for s := range t.streams {
		if s.node == n {
			s.pending[peer.ID] = struct{}{}
			if _, known := s.sent[peer.ID]; known {
				s.sent[peer.ID] = retell
			}
		}
	}
}

// retell is a value that node.whole never has.
const retell = -1

// applyViewsLocked makes of c, a copy of peer, what n is told of it.
func (t *table) applyViewsLocked(c *tailcfg.Node, n, peer *node) {
	v := t.views[sight{n.ID, peer.ID}]
	c.IsJailed = v.Jailed
	if v.Expired {
		c.Expired, c.KeyExpiry = true, expiredSince()
	}
	if v.As.IsValid() {
		c.Addresses = []netip.Prefix{netip.PrefixFrom(v.As, v.As.BitLen())}
		c.AllowedIPs = slices.Clone(c.Addresses)
	}
	switch as := t.views[sight{peer.ID, n.ID}].As; {
	case as.Is4():
		c.SelfNodeV4MasqAddrForThisPeer = &as
	case as.Is6():
		c.SelfNodeV6MasqAddrForThisPeer = &as
	}
}

// pokeLocked has every stream look for what it has not told.
func (t *table) pokeLocked() {
	for s := range t.streams {
		s.poke()
	}
}
