// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"fmt"

	"tailscale-nri/engine/internal/podstate"
)

// Attach gives the pod its link and starts its node. It does local work only, a few
// milliseconds of it; the node comes up by itself, as soon as the tailnet lets it.
// Attaching a sandbox again changes nothing; created reports whether it was not attached,
// and is now.
//
// After an error nothing is left of what this call has begun, in the kernel or on disk.
// What AttachEmpty has made stays.
func (e *Engine) Attach(ctx context.Context, pod Pod) (created bool, err error) {
	return e.attach(ctx, pod, false)
}

// AttachEmpty is [Engine.Attach] for a sandbox that has no container yet. It leaves to the
// node what other pods would wait for: see [podnet.Begin]. Before the first container
// starts, call Attach, which does that unless it is done.
func (e *Engine) AttachEmpty(ctx context.Context, pod Pod) error {
	_, err := e.attach(ctx, pod, true)
	return err
}

func (e *Engine) attach(ctx context.Context, pod Pod, empty bool) (created bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if !podstate.ValidUID(pod.UID) || pod.SandboxID == "" {
		return false, fmt.Errorf("pod UID %q, sandbox %q: not usable as names", pod.UID, pod.SandboxID)
	}
	err = e.act(func() error {
		for {
			var err error
			created, err = e.nodeOf(pod).attach(ctx, pod, empty)
			if err == nil {
				e.clearLate(pod.UID)
			}
			if !errors.Is(err, errRetired) {
				return err
			}
		}
	})
	return created, err
}

// Serves reports whether the sandbox has its node and its whole link, or had them until
// it was detached: there is nothing to attach. It looks at nothing but memory, and
// waits for nothing.
func (e *Engine) Serves(podUID, sandboxID string) bool {
	n := e.nodeOfUID(podUID)
	return n != nil && n.linkedSandbox() == sandboxID && (n.task.active() || n.end.stopped.Load())
}
