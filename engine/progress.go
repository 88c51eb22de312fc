// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"fmt"
	"net/netip"

	"tailscale.com/tailcfg"
	"tailscale.com/types/views"
)

// progress is what is known of a node's way up.
type progress struct {
	active    bool         // the backend is Starting or Running
	addrs     []netip.Addr // on ts0
	reachable bool         // see reach
	dnsDue    bool         // the pod's names are not resolved yet
	nodeID    tailcfg.StableNodeID
	admitted  tailcfg.StableNodeID // as the control plane has told this session
	dnsName   string
	given     views.Slice[netip.Prefix] // its addresses in the netmap
	tags      views.Slice[string]       // as the tailnet has them
	reported  string                    // what ready last told the world
	keepsName bool                      // keepName has been started
}

// identity is what a pod is known by in the tailnet.
func (p *progress) identity() string { return fmt.Sprint(p.addrs, p.dnsName) }

func (p *progress) up() bool { return p.active && p.addrs != nil }

// complete reports whether a peer's first packet would be answered, and the pod's
// programs find what they ask for.
func (p *progress) complete() bool { return p.up() && p.reachable && !p.dnsDue && p.isCurrent() }

// isCurrent reports whether ts0 has the addresses of the netmap and none of an
// earlier one: of a node that has just become another device.
func (p *progress) isCurrent() bool {
	for _, addr := range p.addrs {
		if !views.SliceContains(p.given, netip.PrefixFrom(addr, addr.BitLen())) {
			return false
		}
	}
	return true
}
