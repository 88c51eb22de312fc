// SPDX-License-Identifier: BSD-3-Clause

package engine

import "testing"

// localIsIn is whether this tree has local delivery. Without it, everything
// below runs over WireGuard twice.
const localIsIn = false

// localDelivery switches local delivery on or off.
func localDelivery(cfg *Config, on bool) {
	// cfg.NoLocalDelivery = !on
}

// deliveredLocally is how many packets the pod's node has handed to other nodes
// of the engine without WireGuard.
func deliveredLocally(t *testing.T, e *Engine, pod Pod) uint64 {
	t.Helper()
	return 0
}
