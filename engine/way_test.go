// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"testing"
	"testing/synctest"
	"time"

	"tailscale-nri/engine/measure"
)

// The stages of a way up add up to all of it, in whichever order they are passed.
func TestWayStages(t *testing.T) {
	for name, tt := range map[string]struct {
		pass       func(*way)
		registered time.Duration
		addressed  time.Duration
	}{
		"from the control plane": {func(w *way) {
			time.Sleep(2 * time.Second)
			w.passRegistered()
			time.Sleep(3 * time.Second)
			w.passAddressed()
		}, 2 * time.Second, 3 * time.Second},
		"from the last netmap": {func(w *way) {
			time.Sleep(2 * time.Second)
			w.passAddressed()
			time.Sleep(3 * time.Second)
			w.passRegistered()
		}, 5 * time.Second, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tally := newTally()
				w := way{tally: tally}
				began := time.Now()
				time.Sleep(time.Second)
				w.begin(began)
				tt.pass(&w)
				time.Sleep(4 * time.Second)
				w.passRegistered() // a second time counts for nothing
				w.passAddressed()
				w.end(time.Now())
				w.end(time.Now())
				for stage, got := range map[string]struct {
					of   *measure.Histogram
					want time.Duration
				}{
					"attached": {&tally.attached, time.Second}, "registered": {&tally.registered, tt.registered},
					"addressed": {&tally.addressed, tt.addressed}, "reachable": {&tally.reachable, 4 * time.Second},
					"ready": {&tally.ready, 10 * time.Second},
				} {
					if b := got.of.Buckets(); b.Count != 1 || b.Sum != got.want.Seconds() {
						t.Errorf("%s: %d times, %v s in all, want once %v", stage, b.Count, b.Sum, got.want)
					}
				}
			})
		})
	}
}

// A node that another process has attached counts for nothing.
func TestWayOfAnotherProcess(t *testing.T) {
	tally := newTally()
	w := way{tally: tally}
	w.passRegistered()
	w.passAddressed()
	w.end(time.Now())
	if b := tally.ready.Buckets(); b.Count != 0 {
		t.Errorf("%d nodes were counted", b.Count)
	}
}
