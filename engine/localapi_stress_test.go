// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"sync"
	"testing"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/tstime"
)

// TestLocalAPIWhileNodeGoes: a request while the node's backend is closed and opened
// again gets an answer or an error, and keeps the backend from neither.
func TestLocalAPIWhileNodeGoes(t *testing.T) {
	w := newWorld(t)
	w.boot()
	c, node := w.apiOf("a")
	addr := node.Addresses[0]
	ctx, stop := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	for _, ask := range []func(){
		func() { c.Status(ctx) },
		func() { c.WhoIs(ctx, addr.String()) },
		func() { c.Ping(ctx, addr, tailcfg.PingDisco) },
		func() { c.UserMetrics(ctx) },
		func() { c.CurrentDERPMap(ctx) },
	} {
		asking.Go(func() {
			for ctx.Err() == nil {
				ask()
				tstime.Sleep(ctx, time.Millisecond)
			}
		})
	}
	for range 3 {
		if err := w.control.Delete(node.NodeID); err != nil {
			t.Fatal(err)
		}
		was := node.NodeID
		w.until("the node is another device", func() bool {
			node = w.statusOf("uid-a")
			return node.State == Running && node.NodeID != was
		}, func() string { return node.Reason })
	}
	stop()
	asking.Wait()
	if st, err := c.Status(t.Context()); err != nil || string(st.Self.ID) != node.NodeID {
		t.Errorf("in the end: %v, want %s", err, node.NodeID)
	}
}
