// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"slices"
	"testing"

	"tailscale-nri/k3d/lab/headscale"
)

// A pod comes in with a tagged key, and has the key's tags.
func TestHeadscaleJoin(t *testing.T) {
	for _, test := range []struct {
		name      string
		ephemeral bool
	}{{"kept", false}, {"ephemeral", true}} {
		t.Run(test.name, func(t *testing.T) {
			w := newHeadscaleWorld(t)
			w.key(headscale.KeyConfig{Tags: []string{"tag:k8s-pod"}, Ephemeral: test.ephemeral})
			w.boot()
			pod := w.start("a")
			node := w.await(pod.UID, Running)
			t.Logf("ready in %v", node.ReadyIn)
			nodes := w.nodes()
			if len(nodes) != 1 || !slices.Equal(nodes[0].Tags, []string{"tag:k8s-pod"}) {
				t.Errorf("nodes %+v", nodes)
			}
			w.Forget(t.Context(), pod.SandboxID)
			w.awaitForgotten(pod.UID)
			t.Logf("after: %+v", w.nodes())
		})
	}
}
