// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/scene"
)

// TestPluginRestarts ends the plugin in both ways, several times, with connections from the peer and between pods in
// both directions. All of them go on, and all nodes are who they were.
func TestPluginRestarts(t *testing.T) {
	t.Parallel()
	s := openServed(t, "roll")
	s.must(s.StartPeer(s.ctx))
	web, db := s.runServing("web"), s.runServing("db")
	was := fmt.Sprint(web.Node().NodeID, web.Node().Addresses, db.Node().NodeID, db.Node().Addresses)
	for _, sig := range []unix.Signal{unix.SIGKILL, unix.SIGTERM, unix.SIGKILL, unix.SIGTERM} {
		// The other direction is a stream of its own, begun first.
		back, err := s.OpenStream(s.ctx, s.InPod(web), db, db.IP4())
		s.must(err)
		waits, err := s.Survive(s.ctx, web, []scene.Place{s.AtPeer(), s.InPod(db)}, func(ctx context.Context) error {
			if err := s.Plugin.End(ctx, sig); err != nil {
				return err
			}
			s.start()
			return s.Registered(ctx)
		})
		s.must(err)
		s.must(back.AwaitMore(s.ctx, 10))
		_, backWait := back.Answers()
		s.must(back.Close())
		t.Logf("%v: the longest silence was %v from the peer, %v and %v between pods", sig, waits[0], waits[1], backWait)
		s.must(s.AwaitRunning(s.ctx, web))
		s.must(s.AwaitRunning(s.ctx, db))
	}
	if is := fmt.Sprint(web.Node().NodeID, web.Node().Addresses, db.Node().NodeID, db.Node().Addresses); is != was {
		t.Errorf("the nodes were %s, are %s", was, is)
	}
}

// TestCrashes kills the plugin over and over while pods come and go. In the end there is nothing of them, least of all
// a device that no node has.
func TestCrashes(t *testing.T) {
	t.Parallel()
	s := openServed(t, "crash")
	var pods sync.WaitGroup
	done := make(chan struct{})
	for worker := range 4 {
		pods.Go(func() {
			for i := range 6 {
				if err := s.onePod(fmt.Sprintf("w%d-%d", worker, i), false); err != nil {
					t.Error(err)
				}
			}
		})
	}
	go func() { pods.Wait(); close(done) }()
	crashes := 0
	for alive := true; alive; crashes++ {
		select {
		case <-done:
			alive = false
		case <-time.After(time.Duration(100+70*(crashes%7)) * time.Millisecond): // at ever other moments
		}
		s.must(s.Plugin.Kill(s.ctx))
		s.start()
	}
	t.Logf("%d crashes", crashes)
	s.must(s.Registered(s.ctx))
	s.must(s.AwaitTraces(s.ctx, scene.Traces{}))
}

// TestSandboxes: what has stopped keeps its device until it is removed, and a pod that gets another sandbox is the
// same node in it, also if the first one is removed afterwards.
func TestSandboxes(t *testing.T) {
	t.Parallel()
	s := openServed(t, "again")
	sandbox := func(name string) *scene.Pod {
		// A kubelet counts attempts in the sandbox's name; here names differ, and the UID makes it the same pod.
		pod, err := s.RunSandbox(s.ctx, lab.PodSpec{Name: name, UID: "the-same", Annotations: scene.OptIn("tailscale.com/hostname", "web")})
		s.must(err)
		s.must(s.AwaitRunning(s.ctx, pod))
		return pod
	}
	first := sandbox("first")
	s.must(s.Lab.CRI().StopPod(s.ctx, first.ID))
	_, err := s.AwaitNode(s.ctx, first, func(n scene.Node) error {
		if n.State != "Stopped" {
			return fmt.Errorf("expected state Stopped, saw %s", n.State)
		}
		return nil
	})
	s.must(err)
	if devices, err := s.Devices(s.ctx); err != nil || len(devices) != 1 {
		t.Errorf("a stopped pod's device: %v, %v", devices, err)
	}
	second := sandbox("second")
	if was, is := first.Node(), second.Node(); was.NodeID != is.NodeID || fmt.Sprint(was.Addresses) != fmt.Sprint(is.Addresses) {
		t.Errorf("the pod was %s at %v, is %s at %v", was.NodeID, was.Addresses, is.NodeID, is.Addresses)
	}
	s.must(s.RemovePod(s.ctx, first))
	s.must(s.AwaitRunning(s.ctx, second))
	if devices, err := s.Devices(s.ctx); err != nil || len(devices) != 1 {
		t.Errorf("the device after the removal of an earlier sandbox: %v, %v", devices, err)
	}
	s.must(s.RemovePod(s.ctx, second))
	s.must(s.AwaitTraces(s.ctx, scene.Traces{}))
}
