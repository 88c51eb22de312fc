// SPDX-License-Identifier: BSD-3-Clause

package engine

import "time"

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
