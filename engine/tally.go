// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"sync/atomic"

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

// countRegistration counts one with an auth key; again says that the node had a device.
func (t *tally) countRegistration(again bool) {
	if again {
		t.again.Add(1)
	} else {
		t.first.Add(1)
	}
}

// written counts the bytes that this process has written to a node's files.
type written [measure.Files]atomic.Uint64

func (w *written) add(to measure.File, bytes int) { w[to].Add(uint64(bytes)) }

// to returns what counts bytes of the file.
func (w *written) to(f measure.File) func(bytes int) { return func(bytes int) { w.add(f, bytes) } }

// all returns the bytes by file.
func (w *written) all() (by [measure.Files]uint64) {
	for f := range by {
		by[f] = w[f].Load()
	}
	return by
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
