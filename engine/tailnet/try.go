// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"context"
	"errors"
	"fmt"
	"time"

	tailscale "tailscale.com/client/tailscale/v2"
)

// keyGrace is how much longer than its caller's context TryKey may take in order to
// leave no key behind.
const keyGrace = 2 * time.Second

// TryKey has the API mint a key for a node with these tags, or with the defaults if there
// are none, and deletes the key unused. If ctx is canceled meanwhile, the deletion still
// has 2 seconds. Errors are *Error, or wrap ctx's. One that is of the deletion leaves a
// key that expires by itself.
func (o *OAuth) TryKey(ctx context.Context, tags []string) error {
	if len(tags) == 0 {
		tags = o.tags
	}
	// A request whose answer is not waited for would leave a key.
	minting, cancel := outlive(ctx, keyGrace, func() bool { return errors.Is(ctx.Err(), context.Canceled) })
	defer cancel()
	key, err := o.mint(minting, "minting a trial key", kind{tags: tags}, "tailscale-nri trial")
	if err != nil {
		return err
	}
	deleting, cancel := outlive(ctx, keyGrace, func() bool { return true })
	defer cancel()
	if err := o.api.Keys().Delete(deleting, key.ID); err != nil && !tailscale.IsNotFound(err) {
		return o.explain(deleting, fmt.Sprintf("deleting the trial key %s", key.ID), nil, err)
	}
	return nil
}

// outlive returns a context that ends with ctx, and with its cause; where longer says
// so then, that long after it.
func outlive(ctx context.Context, by time.Duration, longer func() bool) (context.Context, context.CancelFunc) {
	out, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if longer() {
			sleepFor(out, by)
		}
		cancel(context.Cause(ctx))
	})
	return out, func() {
		stop()
		cancel(nil)
	}
}

// sleepFor waits, or until ctx ends.
func sleepFor(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
