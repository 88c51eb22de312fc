// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"tailscale-nri/engine/internal/podnet"
)

// A handover: the next process gets the directory when nothing of the last one
// acts any more. It has the same UDP ports, which are free by then, and the pods
// are the same nodes.
func TestHandover(t *testing.T) {
	const pods = 5
	w := newWorld(t)
	w.boot()
	before := map[string]NodeStatus{}
	for i := range pods {
		_, pod := w.pod(fmt.Sprint("p", i))
		w.mustAttach(pod)
	}
	for _, s := range w.Status() {
		before[s.UID] = w.await(s.UID, Running)
	}
	ports := w.ports()
	for range 3 {
		claimed := make(chan time.Time, 1)
		go func() {
			c, err := ClaimState(context.Background(), w.dir, nil)
			if err == nil {
				claimed <- time.Now()
				err = c.Release()
			}
			if err != nil {
				t.Error(err)
			}
		}()
		old, start := w.Engine, time.Now()
		w.halt()
		t.Logf("claimed %v after the end was asked for", (<-claimed).Sub(start).Round(time.Millisecond))
		_, late := w.pod("late")
		if _, err := old.Attach(context.Background(), late); !errors.Is(err, errStopped) {
			t.Errorf("Attach after the end: %v", err)
		}
		if err := errors.Join(old.Detach(context.Background(), "sbp0"), old.Forget(context.Background(), "sbp0")); !errors.Is(err, errStopped) {
			t.Errorf("Detach and Forget after the end: %v", err)
		}
		w.boot()
		for uid, was := range before {
			if is := w.await(uid, Running); is.NodeID != was.NodeID {
				t.Errorf("%s is node %s, was %s", uid, is.NodeID, was.NodeID)
			}
		}
		for uid, port := range w.ports() {
			if port == 0 || port != ports[uid] {
				t.Errorf("%s listens on %d, did on %d", uid, port, ports[uid])
			}
		}
	}
}

// ports are the UDP ports that the nodes listen on.
func (w *world) ports() map[string]uint16 {
	ports := map[string]uint16{}
	for _, n := range w.snapshot() {
		ports[n.uid] = n.record().Port
	}
	return ports
}

// What a sandbox is served for, a container's creation need not ask for again;
// and one that was detached is not attached by it.
func TestServes(t *testing.T) {
	w := newWorld(t)
	w.boot()
	ctx := context.Background()
	_, pod := w.pod("a")
	expect := func(when string, want bool) {
		t.Helper()
		if got := w.Serves(pod.UID, pod.SandboxID); got != want {
			t.Errorf("%s: serves %v, want %v", when, got, want)
		}
	}
	attach := func(when string, want bool) {
		t.Helper()
		if created, err := w.Attach(ctx, pod); created != want || err != nil {
			t.Errorf("%s: created %v, want %v (%v)", when, created, want, err)
		}
	}
	expect("unknown", false)
	attach("unknown", true)
	expect("attached", true)
	attach("attached", false)
	if w.Serves(pod.UID, "another") || w.Serves("another", pod.SandboxID) {
		t.Error("it serves what is not there")
	}
	w.await(pod.UID, Running)
	w.halt()
	w.boot()
	w.await(pod.UID, Running)
	expect("after a restart", true)
	attach("after a restart", false)
	second, again := w.pod("a2")
	again.UID = pod.UID
	if w.Serves(again.UID, again.SandboxID) {
		t.Error("it serves the pod's next sandbox before it is attached")
	}
	pod = again
	attach("the pod's next sandbox", true)
	expect("attached again", true)
	w.Detach(ctx, pod.SandboxID)
	expect("just detached", true)
	w.await(pod.UID, Stopped)
	expect("detached", true)
	second.End()
	w.Forget(ctx, pod.SandboxID)
	w.awaitForgotten(pod.UID)
	expect("forgotten", false)
}

// A process that resumes a node whose link is gone answers for it only when it
// has created it again, and says why it cannot.
func TestServesWithoutLink(t *testing.T) {
	w := newWorld(t)
	w.boot()
	p, pod := w.pod("a")
	w.mustAttach(pod)
	w.await(pod.UID, Running)
	w.halt()
	if err := podnet.Remove(podnet.HostLink(pod.SandboxID)); err != nil {
		t.Fatal(err)
	}
	const foreign = "foreign"
	p.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = podnet.PodLink
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: foreign})
	})
	w.boot()
	w.until("the node says why it has no link", func() bool {
		return strings.Contains(w.statusOf(pod.UID).Reason, "not ours")
	}, func() string { return w.statusOf(pod.UID).Reason })
	if _, err := w.Attach(context.Background(), pod); w.Serves(pod.UID, pod.SandboxID) || err == nil || !strings.Contains(err.Error(), "not ours") {
		t.Errorf("it answers for a pod without a link (Attach = %v)", err)
	}
	p.Do(func() error {
		link, err := netlink.LinkByName(foreign)
		if err == nil {
			err = netlink.LinkDel(link)
		}
		return err
	})
	if w.mustAttach(pod); !w.Serves(pod.UID, pod.SandboxID) {
		t.Error("it does not answer for a pod with its link")
	}
	w.await(pod.UID, Running)
}
