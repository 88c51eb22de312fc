// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"tailscale-nri/engine/internal/podnet"
)

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
