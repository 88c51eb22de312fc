// SPDX-License-Identifier: BSD-3-Clause

package main

import "sync"

// refusals remembers which refused sandboxes the log has, so that a runtime
// that restarts often does not repeat them. The zero value is empty.
type refusals struct {
	mu     sync.Mutex
	logged map[string]string // sandbox ID to reason
}

// isNews reports whether the sandbox was not refused before for this reason.
func (r *refusals) isNews(sandboxID string, reason error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.logged[sandboxID] != reason.Error()
}

// keep replaces what is remembered, so that it never outgrows the node.
func (r *refusals) keep(seen map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.logged = seen
}
