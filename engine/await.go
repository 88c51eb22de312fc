// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"time"
)

// awaitPoll is how often Await looks for a node that there is none of yet, and for
// what a node's guard says, which wakes nobody.
const awaitPoll = 250 * time.Millisecond

// Await returns nil once the pod's node is Running. At the end of ctx its error is
// why the node is not: its [NodeStatus.Reason] in the first place. It waits for a
// pod that is not attached yet, too.
func (e *Engine) Await(ctx context.Context, podUID string) error {
	poll := time.NewTicker(awaitPoll)
	defer poll.Stop()
	for {
		why := errUnattached
		var changed <-chan struct{}
		if n := e.nodeOfUID(podUID); n != nil {
			changed = n.changes()
			s := n.snapshot()
			if s.State == Running {
				return nil
			}
			why = notRunning(s)
		}
		select {
		case <-changed:
		case <-poll.C:
		case <-e.ctx.Done():
			return errStopped
		case <-ctx.Done():
			return why
		}
	}
}

var errUnattached = errors.New("this process knows no node of the pod")

// notRunning is why a node is not Running. One that nobody answers has no better
// reason for the first minute.
func notRunning(s NodeStatus) error {
	switch s.Reason {
	case "":
		return errors.New("the node is " + string(s.State))
	case reasonStarting, reasonStartingAgain:
		return errors.New(s.Reason + ": neither Tailscale's API nor the control server has let the node in or refused it yet")
	}
	return errors.New(s.Reason)
}

// changes returns a channel that is closed when the node's state changes next.
func (p *published) changes() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.changed == nil {
		p.changed = make(chan struct{})
	}
	return p.changed
}

// wakeLocked tells those that wait for the node. p.mu is held.
func (p *published) wakeLocked() {
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
}
