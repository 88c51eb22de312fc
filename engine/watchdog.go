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

// closeBackend closes the backend. One that hangs must not keep the node from
// being served again.
func (n *node) closeBackend(b *backend) {
	_, err := within(n.e.cfg.AttachTimeout, "closing the backend", func() (struct{}, error) {
		b.close()
		return struct{}{}, nil
	}, func(struct{}) {})
	if err != nil {
		n.log().Error("the backend did not close in time, and is abandoned", "err", err)
	}
}

// late returns the watchdog's error, with what is known of the cause.
func (s *session) late() error {
	what := "state " + s.b.State().String()
	if h := s.b.StatusWithoutPeers().Health; len(h) > 0 {
		what += ": " + strings.Join(h, "; ")
	}
	return fmt.Errorf("no address from the control plane after %v (%s)", s.n.e.cfg.AttachTimeout, what)
}
