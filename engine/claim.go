// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"time"

	"tailscale-nri/engine/internal/podstate"
)

// Claim is the right to serve the nodes of a state directory. One process has
// it at a time: two would each undo what the other does.
type Claim = podstate.Claim

// ClaimState makes the directory, 0700, and claims it. If another process has it, standBy
// is called once, unless it is nil. ClaimState returns as soon as that process releases
// it, or with an error when ctx ends.
func ClaimState(ctx context.Context, dir string, standBy func()) (*Claim, error) {
	return podstate.ClaimState(ctx, dir, standBy)
}

// claimPatience is how long a process that was killed may take to end. The kernel closes
// a packet socket of each pod, at about 14 ms each (Linux 6.18, packet_release,
// synchronize_net), and may release the lock last.
const claimPatience = 10 * time.Second

// errStopped is what a call gets that comes too late: the next process may have
// the pods by now.
var errStopped = errors.New("tailscale-nri is ending")

// act runs f, which the engine's end waits for, unless that has begun.
func (e *Engine) act(f func() error) error {
	e.mu.Lock()
	if e.ctx.Err() != nil {
		e.mu.Unlock()
		return errStopped
	}
	e.wg.Add(1)
	e.mu.Unlock()
	defer e.wg.Done()
	return f()
}
