// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"context"
	"fmt"

	tailscale "tailscale.com/client/tailscale/v2"
)

// TryKey has the API mint a key for a node with these tags, none for the defaults,
// and deletes it unused. Errors are *Error, or wrap ctx's. One that is of the
// deletion leaves a key that expires by itself.
func (o *OAuth) TryKey(ctx context.Context, tags []string) error {
	if len(tags) == 0 {
		tags = o.tags
	}
	key, err := o.mint(ctx, "minting a trial key", kind{tags: tags}, "tailscale-nri trial")
	if err != nil {
		return err
	}
	if err := o.api.Keys().Delete(ctx, key.ID); err != nil && !tailscale.IsNotFound(err) {
		return o.explain(ctx, fmt.Sprintf("deleting the trial key %s", key.ID), nil, err)
	}
	return nil
}
