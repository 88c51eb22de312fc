// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"testing"
	"time"
)

// Two pods of one machine talk over the tailnet, each under its own address.
func TestTwoPods(t *testing.T) {
	w := newWorld(t)
	w.boot()
	a, podA := w.pod("a")
	b, podB := w.pod("b")
	serveEcho(t, a)
	serveEcho(t, b)
	start := time.Now()
	w.mustAttach(podA)
	w.mustAttach(podB)
	t.Logf("two attaches took %v", time.Since(start))
	nodeA, nodeB := w.await(podA.UID, Running), w.await(podB.UID, Running)
	t.Logf("ready in %v and %v", nodeA.ReadyIn, nodeB.ReadyIn)
	for i, addr := range nodeB.Addresses {
		if seen, err := callerSeen(a, addr); err != nil || seen != nodeA.Addresses[i].String() {
			t.Errorf("b sees a as %q (%v), want %v", seen, err, nodeA.Addresses[i])
		}
	}
	for i, addr := range nodeA.Addresses {
		if seen, err := callerSeen(b, addr); err != nil || seen != nodeB.Addresses[i].String() {
			t.Errorf("a sees b as %q (%v), want %v", seen, err, nodeB.Addresses[i])
		}
	}
}
