// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"testing"

	"tailscale-nri/k3d/lab/headscale"
)

// Headscale keeps a device, too, whose node comes with a new node key from another
// host, and no peer takes what the earlier holder sends when it goes on.
func TestHeadscaleWorkload(t *testing.T) {
	w := newHeadscaleWorld(t)
	_, secret, err := w.hs.CreateKey(t.Context(), headscale.KeyConfig{Tags: []string{"tag:k8s-pod"}, Reusable: true})
	if err != nil {
		t.Fatal(err)
	}
	w.tailnet = w.static(secret)
	testPausedHolder(t, w.world, order{AuthKey: secret, ControlURL: w.hs.URL()}, true)
	if got := describeNodes(w.nodes()); got != "k8s-default-client, k8s-default-db-0" {
		t.Errorf("nodes: %s", got)
	}
}
