// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"context"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab/scene"
)

// TestServingProcessEnds ends the process that serves, by a control plane that says "exit" and by a signal. The plugin
// starts it again by itself, and the pods keep node and connections.
func TestServingProcessEnds(t *testing.T) {
	t.Parallel()
	s := openServed(t, "super")
	s.must(s.StartPeer(s.ctx))
	web, db := s.runServing("web"), s.runServing("db")
	was, parent := fmt.Sprint(web.Node().NodeID, web.Node().Addresses), s.Plugin.PID()
	for i, end := range []func(context.Context) error{
		func(ctx context.Context) error {
			n, err := s.plane.Exit(ctx, db.Node().NodeID, 0)
			if err == nil && n != 1 {
				err = fmt.Errorf("%d clients were told to exit, want 1", n)
			}
			return err
		},
		func(context.Context) error { return unix.Kill(s.Plugin.Serving(), unix.SIGKILL) },
	} {
		waits, err := s.Survive(s.ctx, web, []scene.Place{s.AtPeer(), s.InPod(db)}, func(ctx context.Context) error {
			if err := end(ctx); err != nil {
				return err
			}
			return s.AwaitLogTimes(ctx, i+2, "registered with the container runtime")
		})
		s.must(err)
		t.Logf("the longest silence was %v from the peer, %v between pods", waits[0], waits[1])
		s.must(s.AwaitRunning(s.ctx, web))
	}
	if is := fmt.Sprint(web.Node().NodeID, web.Node().Addresses); is != was || s.Plugin.PID() != parent {
		t.Errorf("the node was %s, is %s; the plugin was %d, is %d", was, is, parent, s.Plugin.PID())
	}
}
