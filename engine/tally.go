// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"sync/atomic"
	"time"

	"tailscale-nri/engine/measure"
)

// tally is what the engine counts, always: it is a few additions in the life of a
// pod. What is measured of a pod's packets is read when somebody asks for it.
type tally struct {
	attached, registered, addressed, reachable, ready measure.Histogram

	late, restarts atomic.Uint64
	first, again   atomic.Uint64 // registrations
	podEnded       atomic.Uint64 // devices deleted
	swept          atomic.Uint64
	nameTaken      atomic.Uint64
	sweeps         atomic.Uint64
	failedSweeps   atomic.Uint64
	sweepDue       atomic.Int64
}

func newTally() *tally {
	t := &tally{}
	for _, h := range []*measure.Histogram{&t.attached, &t.registered, &t.addressed, &t.reachable, &t.ready} {
		h.Bounds = measure.AttachBounds
	}
	return t
}

// way is when a node has passed the stages of its way up. n.mu guards it.
type way struct {
	began      time.Time // zero if another process has attached the node
	attached   time.Time
	registered time.Time
	addressed  time.Time
}

// beginWay notes that the node has got its link, in an attach that began then.
func (n *node) beginWay(began time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.way = way{began: began, attached: time.Now()}
}

// passRegistered notes that the control plane has let the node in. registered
// reports whether it came with an auth key, and again whether it had a device.
func (n *node) passRegistered(registered, again bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.way.registered.IsZero() {
		n.way.registered = time.Now()
	}
	switch {
	case !registered:
	case again:
		n.e.tally.again.Add(1)
	default:
		n.e.tally.first.Add(1)
	}
}

// passAddressed notes that ts0 has the node's addresses.
func (n *node) passAddressed() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.way.addressed.IsZero() {
		n.way.addressed = time.Now()
	}
}

// endWayLocked counts the stages of a node that is up for the first time since its
// attach. One that has a netmap on disk has its addresses before the control
// plane answers: a stage that was passed before the one before it took no time.
func (n *node) endWayLocked(now time.Time) {
	w := n.way
	n.way = way{}
	if w.began.IsZero() || w.registered.IsZero() || w.addressed.IsZero() {
		return
	}
	t := n.e.tally
	t.attached.Observe(w.attached.Sub(w.began))
	t.registered.Observe(w.registered.Sub(w.attached))
	t.addressed.Observe(w.addressed.Sub(w.registered))
	last := w.registered
	if w.addressed.After(last) {
		last = w.addressed
	}
	t.reachable.Observe(now.Sub(last))
	t.ready.Observe(now.Sub(w.began))
}

// countDelete counts the deletion of a device, if it succeeded.
func countDelete(err error, counter *atomic.Uint64) error {
	if err == nil {
		counter.Add(1)
	}
	return err
}

// countSweep counts one sweep.
func (t *tally) countSweep(err error) {
	if err == nil {
		t.sweeps.Add(1)
	} else {
		t.failedSweeps.Add(1)
	}
}

// into writes the tally.
func (t *tally) into(m *measure.Engine) {
	m.Stages = map[string]measure.Buckets{
		measure.Attached: t.attached.Buckets(), measure.Registered: t.registered.Buckets(),
		measure.Addressed: t.addressed.Buckets(), measure.Reachable: t.reachable.Buckets(),
	}
	m.Ready = t.ready.Buckets()
	m.LateAttaches, m.Restarts = t.late.Load(), t.restarts.Load()
	m.Registrations = map[string]uint64{measure.First: t.first.Load(), measure.Again: t.again.Load()}
	m.DevicesDeleted = map[string]uint64{
		measure.PodEnded: t.podEnded.Load(), measure.Swept: t.swept.Load(), measure.NameTaken: t.nameTaken.Load(),
	}
	m.Sweeps = map[string]uint64{measure.OK: t.sweeps.Load(), measure.Failed: t.failedSweeps.Load()}
	m.SweepDue = int(t.sweepDue.Load())
}
