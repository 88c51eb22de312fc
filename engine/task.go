// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"sync"
)

// task runs a node's activity, one at a time. Its zero value runs nothing.
type task struct {
	mu     sync.Mutex
	cancel context.CancelFunc // of what is done, nil before the first; guarded by mu
	done   chan struct{}      // closed when that has ended, nil before the first; guarded by mu
}

// switchTo ends what is done and has spawn start act, once that has ended: spawn
// reports whether it starts what it is given. The context of act is made of parent;
// act runs until it is done, or until it has nothing left to do. It is called by one
// goroutine at a time.
func (t *task) switchTo(parent context.Context, spawn func(func()) bool, act func(context.Context)) {
	ctx, cancel := context.WithCancel(parent)
	done := make(chan struct{})
	previous := t.replace(cancel, done)
	started := spawn(func() {
		defer close(done)
		defer cancel()
		if previous != nil {
			<-previous
		}
		if ctx.Err() == nil {
			act(ctx)
		}
	})
	if !started {
		cancel()
		close(done)
	}
}

// replace ends what is done, and returns the channel that is closed when it has ended.
func (t *task) replace(cancel context.CancelFunc, done chan struct{}) (previous chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	previous = t.done
	if t.cancel != nil {
		t.cancel()
	}
	t.cancel, t.done = cancel, done
	return previous
}

// active reports whether something is being done.
func (t *task) active() bool {
	select {
	case <-t.ended():
		return false
	default:
		return true
	}
}

// await waits until what is done has ended, or ctx is done.
func (t *task) await(ctx context.Context) {
	select {
	case <-t.ended():
	case <-ctx.Done():
	}
}

// ended returns a channel that is closed once what is done now has ended.
func (t *task) ended() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done == nil {
		return alreadyClosed
	}
	return t.done
}

var alreadyClosed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()
