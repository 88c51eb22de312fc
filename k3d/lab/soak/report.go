// SPDX-License-Identifier: BSD-3-Clause

package soak

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"
)

// log shows a line, with the time since the run's begin.
func (r *run) log(format string, args ...any) {
	fmt.Fprintf(r.cfg.Out, "%7.1f s  %s\n", time.Since(r.begin).Seconds(), fmt.Sprintf(format, args...))
}

// fail notes what is not as it must be. The same again is not noted again.
func (r *run) fail(err error) {
	r.mu.Lock()
	again := slices.Contains(r.failures, err.Error())
	if !again {
		r.failures = append(r.failures, err.Error())
	}
	r.mu.Unlock()
	if !again {
		r.log("FAILED %v", err)
	}
}

func (r *run) failed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.failures)
}

// report shows how far it has come, every few seconds until stop is called.
func (r *run) report() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for pause(ctx, progressEvery); ctx.Err() == nil; pause(ctx, progressEvery) {
			r.progress()
		}
		r.progress()
	}()
	return func() { cancel(); <-done }
}

func (r *run) progress() {
	r.mu.Lock()
	begun, ended, done := r.begun, r.ended, &r.faults.done
	r.mu.Unlock()
	now := "away"
	if c, err := look(r.serving()); err == nil {
		now = c.String()
	}
	r.log("%d of %d cycles done, %d under way; ended: plugin %d times, containerd %d; outages: %d; canary silent for %v at most; plugin: %s",
		ended, r.cfg.Cycles, begun-ended, done[plugin].Load(), done[runtime].Load(), done[tailnet].Load(),
		r.canary.Load().silence().Round(time.Millisecond), now)
}

// Print shows what was found. The last line is "leaks: 0", or the number of leaks with each of them on a line before it.
func (res Result) Print(out io.Writer, seed uint64) {
	for _, f := range res.Failures {
		fmt.Fprintf(out, "failure: %s\n", f)
	}
	for _, l := range res.Leaks {
		fmt.Fprintf(out, "leak: %s\n", l)
	}
	if res.Logs != "" {
		fmt.Fprintf(out, "seed %d; the logs of plugin, containerd and control plane are in %s\n", seed, res.Logs)
	}
	fmt.Fprintf(out, "the canary's connection was silent for %v at most\n", res.Silence.Round(time.Millisecond))
	fmt.Fprintf(out, "leaks: %d\n", len(res.Leaks))
}
