// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"math/rand/v2"
	"runtime"
	"sync"
	"time"
)

// queue lets as many nodes start at a time as there are processors. If fifty nodes start
// at the same time, all of them are up at the end. If they start one after the other,
// half of them are up after half of that time.
//
// A place is a courtesy, not a lock: a node that hangs must not keep others from
// starting, so that none waits for long.
type queue chan struct{}

const queuePatience = 3 * time.Second

func newQueue() queue { return make(queue, runtime.GOMAXPROCS(0)) }

// enter waits for a place. The function returned gives it back, at its first
// call.
func (e *Engine) enter(ctx context.Context) (leave func()) {
	patience := time.NewTimer(queuePatience)
	defer patience.Stop()
	select {
	case e.queue <- struct{}{}:
		return sync.OnceFunc(func() { <-e.queue })
	case <-patience.C:
	case <-ctx.Done():
	}
	return func() {}
}

// longEnough is how long a node must have been served for the next failure to
// be a new one.
const longEnough = 5 * time.Minute

// backoff grows from one second to five minutes, with jitter: fifty pods of a
// node fail together.
type backoff struct{ d time.Duration }

func newBackoff() *backoff { return &backoff{time.Second} }

func (b *backoff) next() time.Duration {
	d := b.d
	b.d = min(2*b.d, 5*time.Minute)
	return d/2 + rand.N(d)
}
