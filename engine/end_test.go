// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"testing"
	"time"

	"tailscale.com/tstime"
)

// patient boots an engine whose grace never ends.
func patient(w *world) { w.boot(graceOf(time.Hour)) }

func graceOf(d time.Duration) func(*Config) { return func(c *Config) { c.Grace = d } }

// A context ends a moment before those that are made of it: a node may see the
// engine close while its own context goes on. Here that goes on for good.
func TestCloseBeforeTheNodesHear(t *testing.T) {
	w := newWorld(t)
	patient(w)
	_, pod := w.pod("a")
	w.mustAttach(pod)
	w.await(pod.UID, Running)
	n := w.Engine.nodes[pod.UID]
	n.op.Lock()
	n.setState(Pending, "")
	n.switchTo(func(ctx context.Context) { n.runAgain(context.WithoutCancel(ctx)) })
	n.op.Unlock()
	w.await(pod.UID, Running)
	w.halt()
}

// A pod that ends without a word is stopped at once, and forgotten soon after
// one of its containers is removed.
func TestEndWithoutAWord(t *testing.T) {
	const grace = time.Minute
	w := newWorld(t)
	w.boot(graceOf(grace))
	p, pod := w.pod("a")
	w.mustAttach(pod)
	w.await(pod.UID, Running)
	start := time.Now()
	p.End()
	w.await(pod.UID, Stopped)
	w.Suspect(pod.SandboxID)
	w.awaitForgotten(pod.UID)
	if took := time.Since(start); took > grace*3/4 {
		t.Errorf("it took %v: nobody has listened to Suspect", took)
	}
	if d := w.control.Devices(); len(d) != 0 {
		t.Errorf("devices are left: %v", d)
	}
}

// So it is if the runtime does not list it any more.
func TestEndNotListed(t *testing.T) {
	w := newWorld(t)
	patient(w)
	p, pod := w.pod("a")
	w.mustAttach(pod)
	w.await(pod.UID, Running)
	p.End()
	if err := w.Sync(context.Background(), nil, nil); err != nil {
		t.Fatal(err)
	}
	w.awaitForgotten(pod.UID)
}

// One that the runtime lists as ended may get another sandbox.
func TestEndListed(t *testing.T) {
	w := newWorld(t)
	patient(w)
	p, pod := w.pod("a")
	w.mustAttach(pod)
	before := w.await(pod.UID, Running)
	p.End()
	if err := w.Sync(context.Background(), nil, []string{pod.SandboxID}); err != nil {
		t.Fatal(err)
	}
	w.await(pod.UID, Stopped)
	_, next := w.pod("a")
	next.SandboxID = "sba2"
	w.mustAttach(next)
	w.Suspect(pod.SandboxID) // of the sandbox before
	if after := w.await(next.UID, Running); after.NodeID != before.NodeID {
		t.Errorf("the next sandbox's node is %s, was %s", after.NodeID, before.NodeID)
	}
}

// A kubelet that creates a sandbox again removes the old one's init containers just
// before: that is no end.
func TestContainerOfTheSandboxBefore(t *testing.T) {
	for name, listed := range map[string]bool{"listed as ended": true, "after a restart of the runtime": false} {
		t.Run(name, func(t *testing.T) {
			const grace = 4 * time.Second
			w := newWorld(t)
			w.boot(graceOf(grace))
			p, pod := w.pod("a")
			w.mustAttach(pod)
			before := w.await(pod.UID, Running)
			p.End()
			if listed {
				if err := w.Sync(context.Background(), nil, []string{pod.SandboxID}); err != nil {
					t.Fatal(err)
				}
			}
			w.await(pod.UID, Stopped)
			w.Suspect(pod.SandboxID)
			_, next := w.pod("a")
			next.SandboxID = "sba2"
			w.mustAttach(next)
			w.await(next.UID, Running)
			tstime.Sleep(t.Context(), grace/2) // twice as long as Suspect waits
			if after := w.await(next.UID, Running); after.NodeID != before.NodeID {
				t.Errorf("the next sandbox's node is %s, was %s", after.NodeID, before.NodeID)
			}
		})
	}
}

// A pod that is created again under its name gets its name in the tailnet too: the
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

// What serves the sandbox before still logs while the next one is attached.
func TestAttachWhileTheNodeLogs(t *testing.T) {
	w := newWorld(t)
	patient(w)
	_, pod := w.pod("a")
	w.mustAttach(pod)
	n := w.nodeOfUID(pod.UID)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				n.log().Debug("serving", "round", i)
			}
		}
	}()
	_, next := w.pod("a")
	next.SandboxID = "sba2"
	w.mustAttach(next)
	close(stop)
	<-done
}
