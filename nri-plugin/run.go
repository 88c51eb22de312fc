// SPDX-License-Identifier: BSD-3-Clause

package main

import "context"

// runAll runs the parts side by side until ctx is done or one of them returns.
// It then stops the others, with that one's error for a cause, waits for them,
// and returns the first error.
func runAll(ctx context.Context, parts ...func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan error, len(parts))
	for _, part := range parts {
		go func() { ended <- part(ctx) }()
	}
	var first error
	for range parts {
		err := <-ended
		if first == nil {
			first = err
		}
		cancel(err)
	}
	return first
}
