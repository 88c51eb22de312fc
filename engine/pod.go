// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"net/netip"
	"slices"

	"tailscale.com/ipn"
	"tailscale.com/net/tsaddr"

	"tailscale-nri/engine/internal/podstate"
)

// What is known of a pod is kept on disk as it is handed in: the JSON tags of these
// are part of the record's format.
type (
	// Pod is a pod sandbox that opted in.
	Pod = podstate.Pod
	// Features are what a pod asks for beyond an address of its own. The zero value
	// asks for nothing, and costs nothing.
	Features = podstate.Features
)

// isRouted reports whether the pod asks for more of the tailnet than its peers, or
// gives it more than the pod.
func isRouted(f *Features) bool {
	return f.AcceptRoutes || f.ExitNode != "" || advertises(f)
}

func advertises(f *Features) bool { return len(f.AdvertiseRoutes) > 0 || f.AdvertiseExitNode }

// advertisedRoutes are what the pod offers its peers.
func advertisedRoutes(f *Features) []netip.Prefix {
	routes := slices.Clone(f.AdvertiseRoutes)
	if f.AdvertiseExitNode {
		routes = append(routes, tsaddr.AllIPv4(), tsaddr.AllIPv6())
	}
	return routes
}

// setFeaturePrefs writes what the pod asks for into its node's preferences. The exit node is
// not one of them: see followExit.
func setFeaturePrefs(p *ipn.Prefs, f *Features) {
	p.CorpDNS = f.DNS
	p.ShieldsUp = f.ShieldsUp
	p.RouteAll = f.AcceptRoutes
	p.AdvertiseRoutes = advertisedRoutes(f)
	// The pod masquerades: podnet does. LocalBackend warns otherwise.
	p.NoSNAT = !advertises(f)
	// Otherwise the networks of this process are among the routes of the pod
	// (ipn/ipnlocal/local.go, routerConfigLocked).
	p.ExitNodeAllowLANAccess = f.ExitNode != ""
}
