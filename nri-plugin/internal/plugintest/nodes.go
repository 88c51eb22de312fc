// SPDX-License-Identifier: BSD-3-Clause

package plugintest

import (
	"net/netip"
	"time"

	"tailscale-nri/engine"
)

// TwoNodes are a Running and a Pending node.
func TwoNodes() []engine.NodeStatus {
	now := time.Now()
	return []engine.NodeStatus{
		{SandboxID: "2", Namespace: "default", Pod: "web", Hostname: "k8s-default-web", State: "Running",
			Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd7a:115c:a1e0::1")},
			Since:     now.Add(-time.Minute), ReadyIn: 1234567 * time.Microsecond},
		{SandboxID: "1", Namespace: "default", Pod: "api", Hostname: "api", State: "Pending", Reason: "the OAuth secret was refused"},
	}
}

// FixedNodes are an engine's answer.
type FixedNodes []engine.NodeStatus

// Status is the answer.
func (f FixedNodes) Status() []engine.NodeStatus { return f }

// Details is the answer, with no more than Status has.
func (f FixedNodes) Details() (all []engine.Detail) {
	for _, n := range f {
		all = append(all, engine.Detail{NodeStatus: n})
	}
	return all
}
