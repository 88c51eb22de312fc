// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"

	"tailscale.com/tailcfg"

	"tailscale-nri/engine/internal/podnet"
	"tailscale-nri/engine/internal/podstate"
)

// What a host is like, for those who look without serving.
type (
	// HostView is what podnet.Inspect returns.
	HostView = podnet.HostView
	// HostLink is one interface.
	HostLink = podnet.HostLinkView
	// HostRoute is one route.
	HostRoute = podnet.HostRoute
	// HostRule is one rule of the policy routing.
	HostRule = podnet.HostRule
	// Trial is one thing that podnet.TryKernel has tried.
	Trial = podnet.Trial
)

// What TryKernel tries.
const (
	TrialNamespace = podnet.TrialNamespace
	TrialLink      = podnet.TrialLink
	TrialSocket    = podnet.TrialSocket
	TrialRules     = podnet.TrialRules
	TrialRules6    = podnet.TrialRules6
	TrialNAT       = podnet.TrialNAT
	TrialGSO       = podnet.TrialGSO
	TrialGRO       = podnet.TrialGRO
)

// InspectHost reads this process's netns: links, addresses, routes, rules.
func InspectHost() (HostView, error) { return podnet.Inspect() }

// TryKernel tries what a pod's link needs, in network namespaces of its own.
func TryKernel() []Trial { return podnet.TryKernel() }

// IsOurLink reports whether a name is one of a link's host end.
func IsOurLink(name string) bool { return podnet.OursByName(name) }

// What a state directory is like.
type (
	// StateView is what a state directory holds.
	StateView = podstate.View
	// StoredPod is a pod's record.
	StoredPod = podstate.StoredPod
)

// InspectState reads a state directory, which another process may be serving, and
// changes nothing in it. A directory that is not there has an error that wraps
// fs.ErrNotExist.
func InspectState(dir string) (StateView, error) { return podstate.Inspect(dir) }

// StoredDERPMap is the DERP map that a node of the state directory was last told,
// nil if none was.
func StoredDERPMap(ctx context.Context, dir string) *tailcfg.DERPMap {
	return podstate.StoredDERPMap(ctx, dir)
}

// What another process than the engine's does in a pod, so that the engine's has no
// work with it.
type (
	// Tap is podnet's: a copy of each frame that passes ts0.
	Tap = podnet.Tap
	// Frame is one of them.
	Frame = podnet.Frame
)

// What ends a Tap's Read.
var (
	// ErrNoFrame is of a Read that was not to wait.
	ErrNoFrame = podnet.ErrNoFrame
	// ErrPodGone says that the pod's network namespace, or the link in it, has ended.
	ErrPodGone = podnet.ErrGone
)

// PodLink is the name of the interface in a pod.
const PodLink = podnet.PodLink
