// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"testing"
	"time"
)

// relisted boots an engine whose grace never ends, and returns a channel that
// has a value for each list that it asks for.
func relisted(w *world) <-chan struct{} {
	asked := make(chan struct{}, 100)
	w.boot(func(c *Config) {
		c.Grace = time.Hour
		c.Relist = func() { asked <- struct{}{} }
	})
	return asked
}

// A pod that ends without a word is forgotten as soon as the runtime's list,
// which the engine asks for, says that it is gone.
func TestEndWithoutAWord(t *testing.T) {
	w := newWorld(t)
	asked := relisted(w)
	p, pod := w.pod("a")
	w.mustAttach(pod)
	w.await(pod.UID, Running)
	p.End()
	<-asked
	if err := w.Sync(context.Background(), nil, nil); err != nil {
		t.Fatal(err)
	}
	w.awaitForgotten(pod.UID)
	if d := w.control.Devices(); len(d) != 0 {
		t.Errorf("devices are left: %v", d)
	}
}

// One that the runtime still lists as ended may get another sandbox; the
// removal of its containers is a reason to ask again.
func TestEndListed(t *testing.T) {
	w := newWorld(t)
	asked := relisted(w)
	p, pod := w.pod("a")
	w.mustAttach(pod)
	before := w.await(pod.UID, Running)
	p.End()
	<-asked
	ctx := context.Background()
	if err := w.Sync(ctx, nil, []string{pod.SandboxID}); err != nil {
		t.Fatal(err)
	}
	again, next := w.pod("a")
	next.SandboxID = "sba2"
	w.mustAttach(next)
	if after := w.await(next.UID, Running); after.NodeID != before.NodeID {
		t.Errorf("the next sandbox's node is %s, was %s", after.NodeID, before.NodeID)
	}
	again.End()
	<-asked
	w.Suspect(next.SandboxID)
	<-asked
	// It had a sandbox before, so that one more might come.
	if err := w.Sync(ctx, nil, nil); err != nil {
		t.Fatal(err)
	}
	if s := w.await(next.UID, Stopped); s.NodeID != before.NodeID {
		t.Errorf("the node is %s, was %s", s.NodeID, before.NodeID)
	}
}

// A pod that is made anew under its name gets its name in the tailnet too: the
// old one leaves before it registers.
func TestSuccessorGetsTheName(t *testing.T) {
	w := newWorld(t)
	w.boot()
	p, pod := w.pod("web-0")
	w.mustAttach(pod)
	before := w.await(pod.UID, Running)
	if err := w.Detach(context.Background(), pod.SandboxID); err != nil {
		t.Fatal(err)
	}
	w.await(pod.UID, Stopped)
	p.End()
	_, next := w.pod("web-0")
	next.UID, next.SandboxID = "uid-next", "sbnext"
	w.mustAttach(next)
	after := w.await(next.UID, Running)
	if after.DNSName != before.DNSName {
		t.Errorf("the successor is called %s, its predecessor was %s", after.DNSName, before.DNSName)
	}
	w.awaitForgotten(pod.UID)
	if d := w.control.Devices(); len(d) != 1 || d[0].ID != after.NodeID {
		t.Errorf("devices: %v, want %s alone", d, after.NodeID)
	}
}
