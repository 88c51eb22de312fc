// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"math/rand/v2"
	"time"
)

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
