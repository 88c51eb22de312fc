// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"sync"
	"time"
)

// way holds the times at which a node has passed the stages of its start.
type way struct {
	tally *tally // that the stages are counted in

	mu     sync.Mutex
	stages stages // guarded by mu
}

// stages are the times at which they were passed, zero for one that was not.
type stages struct {
	began      time.Time // zero if another process has attached the node
	attached   time.Time
	registered time.Time
	addressed  time.Time
}

// begin notes that the node has got its link, in an attach that began then.
func (w *way) begin(began time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stages = stages{began: began, attached: time.Now()}
}

// passRegistered notes that the control plane has let the node in.
func (w *way) passRegistered() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stages.registered.IsZero() {
		w.stages.registered = time.Now()
	}
}

// passAddressed notes that ts0 has the node's addresses.
func (w *way) passAddressed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stages.addressed.IsZero() {
		w.stages.addressed = time.Now()
	}
}

// end counts the stages of a node that is up for the first time since its
// attach. One that has a netmap on disk has its addresses before the control
// plane answers: a stage that was passed before the one before it took no time.
func (w *way) end(now time.Time) {
	w.mu.Lock()
	s := w.stages
	w.stages = stages{}
	w.mu.Unlock()
	if s.began.IsZero() || s.registered.IsZero() || s.addressed.IsZero() {
		return
	}
	t := w.tally
	t.attached.Observe(s.attached.Sub(s.began))
	t.registered.Observe(s.registered.Sub(s.attached))
	t.addressed.Observe(s.addressed.Sub(s.registered))
	last := s.registered
	if s.addressed.After(last) {
		last = s.addressed
	}
	t.reachable.Observe(now.Sub(last))
	t.ready.Observe(now.Sub(s.began))
}
