// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func spawnAlways(f func()) bool { go f(); return true }

// A task does one thing at a time: the next begins when the one before has ended.
func TestTaskTakesTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var task task
		if task.active() {
			t.Error("it is active before it has begun")
		}
		task.await(t.Context())

		var running, begun atomic.Int64
		act := func(ctx context.Context) {
			begun.Add(1)
			if running.Add(1) != 1 {
				t.Error("two at a time")
			}
			<-ctx.Done()
			time.Sleep(time.Second) // it takes a while to end
			running.Add(-1)
		}
		for range 3 {
			task.switchTo(t.Context(), spawnAlways, act)
			time.Sleep(time.Minute)
			if !task.active() {
				t.Error("it is not active")
			}
		}
		if begun.Load() != 3 {
			t.Errorf("%d have begun, want 3", begun.Load())
		}
		task.switchTo(t.Context(), spawnAlways, func(context.Context) {})
		task.await(t.Context())
		if task.active() || running.Load() != 0 {
			t.Error("it is active after it has ended")
		}
	})
}

// What is replaced before its turn has come is not begun.
func TestTaskSkipsWhatIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var task task
		task.switchTo(t.Context(), spawnAlways, func(ctx context.Context) {
			<-ctx.Done()
			time.Sleep(time.Second)
		})
		task.switchTo(t.Context(), spawnAlways, func(context.Context) { t.Error("it was begun") })
		task.switchTo(t.Context(), spawnAlways, func(context.Context) {})
		task.await(t.Context())
	})
}

// What cannot be started has ended, and nobody waits for it.
func TestTaskNotStarted(t *testing.T) {
	var task task
	task.switchTo(t.Context(), func(func()) bool { return false }, func(context.Context) { t.Error("it was begun") })
	task.await(t.Context())
	if task.active() {
		t.Error("it is active")
	}
}

// Waiting for a task ends with its own context.
func TestTaskAwaitGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var task task
		task.switchTo(t.Context(), spawnAlways, func(ctx context.Context) { <-ctx.Done() })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		task.await(ctx)
		if !task.active() {
			t.Error("waiting for it has ended it")
		}
		task.switchTo(t.Context(), spawnAlways, func(context.Context) {})
		task.await(t.Context())
	})
}
