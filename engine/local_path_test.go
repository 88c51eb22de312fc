// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"slices"
	"testing"
)

// deliveredLocally is how many packets the pod's node has handed to other nodes
// of the engine without WireGuard.
func deliveredLocally(t *testing.T, e *Engine, pod Pod) uint64 {
	t.Helper()
	nodes := e.Status()
	i := slices.IndexFunc(nodes, func(s NodeStatus) bool { return s.UID == pod.UID })
	if i < 0 {
		t.Errorf("%s is not among the nodes", pod.UID)
		return 0
	}
	return nodes[i].LocalOut.Packets
}
