// SPDX-License-Identifier: BSD-3-Clause

// Package wait is how the lab and its tests wait: for a check to pass, for the next value of something that is polled
// for many, or for some time. How long at most is up to the context.
package wait

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrEnded is in UntilEnd's error if what it waited for has ended.
var ErrEnded = errors.New("it has ended")

// Until calls check every so often until it returns nil. If ctx is done first, the error is what check saw last.
func Until(ctx context.Context, every time.Duration, check func(context.Context) error) error {
	return UntilEnd(ctx, every, nil, check)
}

// UntilEnd is Until, and gives up with ErrEnded too when ended is closed.
func UntilEnd(ctx context.Context, every time.Duration, ended <-chan struct{}, check func(context.Context) error) error {
	var last error
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err // the error of a check that ctx has cut off says less than the one before
		}
		select {
		case <-ended:
			return fmt.Errorf("%w (%w)", last, ErrEnded)
		case <-ctx.Done():
			return fmt.Errorf("%w (given up: %w)", last, context.Cause(ctx))
		case <-time.After(every):
		}
	}
}

// Pause returns after d, or when ctx is done, with its error.
func Pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Latest is the latest value of something that one goroutine polls, for all that wait for it. Its zero value has none.
type Latest[T any] struct {
	mu      sync.Mutex
	value   T
	changed chan struct{} // closed by the next Set; nil if none has waited for that
}

// Set has all that wait see a new value.
func (l *Latest[T]) Set(value T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.value = value
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// Until passes what is set from now on to check until it returns nil: each value, but for those that another has
// followed while check ran. If ctx is done first, the error is what check saw last.
func (l *Latest[T]) Until(ctx context.Context, check func(T) error) error {
	last := errors.New("no answer")
	_, changed := l.get()
	for {
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w (given up: %w)", last, context.Cause(ctx))
		}
		var value T
		value, changed = l.get()
		if last = check(value); last == nil {
			return nil
		}
	}
}

// get returns the value, and what is closed when there is another.
func (l *Latest[T]) get() (value T, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.value, l.changed
}
