// SPDX-License-Identifier: BSD-3-Clause

package podstate

import (
	"net/netip"
	"time"
)

// Pod is a pod sandbox that opted in.
type Pod struct {
	SandboxID string `json:"sandboxID"`
	UID       string `json:"uid"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// NetNS is the path of the sandbox's network namespace.
	NetNS string `json:"netns"`
	// PID is the pause process, 0 if unknown. Its /proc/PID/ns/net is the
	// second way into the namespace, for nodes whose mounts are private.
	PID uint32 `json:"pid,omitempty"`
	// Hostname is one DNS label of at most 63 characters.
	Hostname string `json:"hostname"`
	// ChosenName is set if the hostname was chosen by a user. Otherwise no two pods
	// of a cluster have it, unless one of them is gone.
	ChosenName bool     `json:"chosenName,omitempty"`
	Tags       []string `json:"tags,omitempty"` // "tag:…"
	Features   Features `json:"features,omitzero"`
}

// Features are what a pod asks for beyond an address of its own. The zero value
// asks for nothing, and costs nothing.
type Features struct {
	// DNS has the pod's containers resolve the tailnet's names too.
	DNS bool `json:"dns,omitempty"`
	// AcceptRoutes has the pod reach the subnets that peers advertise.
	AcceptRoutes bool `json:"acceptRoutes,omitempty"`
	// ExitNode is the peer, by name or address, through which the pod reaches
	// everything but the cluster; "" is none.
	ExitNode string `json:"exitNode,omitempty"`
	// AdvertiseRoutes are the subnets to which the pod forwards for its peers,
	// masked.
	AdvertiseRoutes   []netip.Prefix `json:"advertiseRoutes,omitempty"`
	AdvertiseExitNode bool           `json:"advertiseExitNode,omitempty"`
	// Socket gives the pod's containers a read-only LocalAPI of their node.
	Socket bool `json:"socket,omitempty"`
	// Wait is how long a container waits, at most, for the node to be up; 0 is
	// not at all. WaitFails has it fail after that, where it would start.
	Wait      time.Duration `json:"wait,omitempty"`
	WaitFails bool          `json:"waitFails,omitempty"`
	// Ephemeral has the tailnet delete the device when it has been offline for a
	// while.
	Ephemeral bool `json:"ephemeral,omitempty"`
	// Workload has the pod that is created again under the same namespace and name
	// keep the device.
	Workload bool `json:"workload,omitempty"`
	// Profile names the tailnet, "" is the default one.
	Profile string `json:"profile,omitempty"`
	// ShieldsUp lets no peer begin a connection to the pod.
	ShieldsUp bool `json:"shieldsUp,omitempty"`
}
