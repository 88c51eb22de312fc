// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"context"
	"fmt"
	"regexp"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/control"
	"tailscale-nri/k3d/lab/scene"
)

// TestControlPlaneHangs: with a control plane and an API that never answer, hooks are as fast as ever, pods start and
// end, and the nodes come up by themselves when it is over.
func TestControlPlaneHangs(t *testing.T) {
	t.Parallel()
	s := openServed(t, "hang", "LOG_LEVEL=debug")
	known := s.runServing("known") // logged in before
	s.outage(control.Hanging)
	half := s.run("half") // gets its key, and no answer to its login
	s.must(s.plane.AddFault(s.ctx, control.Fault{Hang: true}))
	pods := []*scene.Pod{half}
	for i := range 6 {
		pods = append(pods, s.run(fmt.Sprintf("p%d", i)))
	}
	for _, pod := range pods {
		s.awaitPending(pod, "")
	}
	for _, pod := range append(pods[4:], known) { // these end during the outage
		s.must(s.RemovePod(s.ctx, pod))
	}
	assertHooks(s, len(pods))

	s.outage(control.Up)
	s.must(s.plane.ClearFaults(s.ctx))
	for _, pod := range pods[:4] {
		s.must(s.AwaitRunning(s.ctx, pod))
	}
	for _, pod := range pods[:4] {
		s.must(s.RemovePod(s.ctx, pod))
	}
	s.must(s.AwaitTraces(s.ctx, scene.Traces{}))
}

var hookTook = regexp.MustCompile(`event=(\w+) took=(\S+)`)

// assertHooks holds each hook so far against a bound below the time after which the plugin gives one up, as one that
// waits for a network would be. Machines with other work take a tenth of it and more.
func assertHooks(s *stage, atLeast int) {
	s.t.Helper()
	const bound = 1400 * time.Millisecond
	lines, err := s.LogLines("hook done")
	s.must(err)
	var longest time.Duration
	seen := map[string]int{}
	for _, line := range lines {
		m := hookTook.FindStringSubmatch(line)
		if m == nil {
			s.t.Fatalf("not a hook's line: %s", line)
		}
		took, err := time.ParseDuration(m[2])
		s.must(err)
		seen[m[1]]++
		if longest = max(longest, took); took > bound {
			s.t.Errorf("expected hooks below %v, saw %s", bound, line)
		}
	}
	if seen["RunPodSandbox"] < atLeast || seen["StopPodSandbox"] == 0 || seen["RemovePodSandbox"] == 0 {
		s.t.Errorf("expected hooks of %d pods, saw %v", atLeast, seen)
	}
	s.t.Logf("hooks %v, the longest took %v", seen, longest)
}

// TestWhileAway: a pod that starts while no plugin is there is attached late; one that ends then leaves the tailnet.
func TestWhileAway(t *testing.T) {
	t.Parallel()
	s := openServed(t, "away")
	s.must(s.StartPeer(s.ctx))
	ended, stays := s.runServing("ended"), s.runServing("stays")
	s.must(s.Plugin.Kill(s.ctx))
	s.must(s.RemovePod(s.ctx, ended))
	late, err := s.RunPod(s.ctx, lab.PodSpec{Name: "late", Annotations: scene.OptIn()})
	s.must(err)

	s.start()
	for _, pod := range []*scene.Pod{stays, late} {
		s.must(s.AwaitRunning(s.ctx, pod))
		peer := s.AtPeer()
		s.must(s.FetchAs(s.ctx, peer, peer.IP4, pod, pod.IP4()))
	}
	_, took, err := s.AwaitGone(s.ctx, ended)
	s.must(err)
	t.Logf("the device of the pod that ended unseen was gone after %v", took.Round(time.Second))
	for _, pod := range []*scene.Pod{stays, late} {
		s.must(s.RemovePod(s.ctx, pod))
	}
	s.must(s.AwaitTraces(s.ctx, scene.Traces{}))
}

// promptly is less than the minute after which a pod that went without a runtime event is given up anyway.
const promptly = 45 * time.Second

// TestContainerdRestarts: the plugin registers again by itself; pods keep address and connections, and can be removed.
//
// The second pod's end is seen by its container's removal: without that it would take a minute.
func TestContainerdRestarts(t *testing.T) {
	t.Parallel()
	s := openServed(t, "ctrd")
	s.must(s.StartPeer(s.ctx))
	web := s.runServing("web")
	was := web.Node()
	for i, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		waits, err := s.Survive(s.ctx, web, []scene.Place{s.AtPeer()}, func(context.Context) error {
			if err := s.Lab.Containerd().Restart(s.ctx, sig); err != nil {
				return err
			}
			return s.AwaitLogTimes(s.ctx, i+2, "registered with the container runtime")
		})
		s.must(err)
		t.Logf("containerd ended with %v; the longest silence of a connection was %v", sig, waits[0])
	}
	s.must(s.AwaitRunning(s.ctx, web))
	if now := web.Node(); fmt.Sprint(now.Addresses, now.NodeID) != fmt.Sprint(was.Addresses, was.NodeID) {
		t.Errorf("the pod's node was %+v, is %+v", was, now)
	}
	later := s.runServing("later")
	// Of a pod that is older than containerd's process, it reports neither the stop nor the removal.
	for _, pod := range []*scene.Pod{later, web} {
		s.must(s.RemovePod(s.ctx, pod))
		_, took, err := s.AwaitGone(s.ctx, pod)
		s.must(err)
		t.Logf("%s was gone after %v", pod.FullName(), took.Round(time.Second))
		if took > promptly {
			t.Errorf("%s was gone after %v, want %v at most", pod.FullName(), took, promptly)
		}
	}
	s.must(s.AwaitTraces(s.ctx, scene.Traces{}))
}
