// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"sync"
	"time"
)

// tenure is what a node knows of the identity that it holds, or waits for.
type tenure struct {
	mu      sync.Mutex // guards what follows
	version string     // as it last stored it, "" if it does not know
	trouble string     // why it could not be renewed

	// The last look at another holder's, and when that version was first seen.
	seen  string
	since time.Time
}

// begin notes that the node has stored that version as its holder; "" says that it holds
// none.
func (t *tenure) begin(version string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.version, t.trouble = version, ""
}

func (t *tenure) setVersion(version string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.version = version
}

// storedVersion is the version that the node last stored, "" if it does not know.
func (t *tenure) storedVersion() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.version
}

// noteRenewal notes how the last renewal has ended.
func (t *tenure) noteRenewal(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.trouble = ""
	if err != nil {
		t.trouble = err.Error()
	}
}

// whyNotRenewed is how the last renewal has failed, "" if it has not.
func (t *tenure) whyNotRenewed() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.trouble
}

// noteOther notes a look at another holder's identity, and returns when that version of it
// was first seen.
func (t *tenure) noteOther(version string, now time.Time) (since time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.seen != version {
		t.seen, t.since = version, now
	}
	return t.since
}
