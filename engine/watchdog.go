// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"fmt"
	"strings"
	"time"
)

// within is the watchdog for calls that take no context. It returns f's result, or an
// error if that does not come in time. A result that comes too late goes to late.
func within[T any](limit time.Duration, what string, f func() (T, error), late func(T)) (T, error) {
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		v, err := f()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-time.After(limit):
		go func() {
			if r := <-done; r.err == nil {
				late(r.v)
			}
		}()
		var none T
		return none, fmt.Errorf("%s hangs: no result within %v", what, limit)
	}
}

// withinErr is within for what has no other result than an error.
func withinErr(limit time.Duration, what string, f func() error) error {
	_, err := within(limit, what, func() (struct{}, error) { return struct{}{}, f() }, func(struct{}) {})
	return err
}

// closeBackend closes the backend. One that hangs must not keep the node from
// being served again.
func (n *node) closeBackend(b *backend) {
	err := withinErr(n.e.cfg.AttachTimeout, "closing the backend", func() error {
		b.close()
		return nil
	})
	if err != nil {
		n.log().Error("the backend did not close in time: its sockets and memory stay until the agent starts again", "err", err)
	}
}

// late returns the watchdog's error if the node has no address, with what is known of the cause.
func (s *session) late() error {
	if s.p.addrs != nil {
		return nil
	}
	what := "state " + s.b.State().String()
	if h := s.b.StatusWithoutPeers().Health; len(h) > 0 {
		what += ": " + strings.Join(h, "; ")
	}
	return fmt.Errorf("no address from the control plane after %v (%s)", s.n.e.cfg.AttachTimeout, what)
}

// end is a session's end that waits for a registration under way: a device
// that we have no ID of cannot be deleted.
type end struct {
	err  error
	late <-chan time.Time // nil until the end has begun
}

// settleTime bounds that wait.
const settleTime = 20 * time.Second

func (e *end) begin(err error) { e.err, e.late = err, time.After(settleTime) }
func (e *end) begun() bool     { return e.late != nil }

// unless returns cause, or a channel that says nothing once the end has begun.
func (e *end) unless(cause <-chan struct{}) <-chan struct{} {
	if e.begun() {
		return nil
	}
	return cause
}
