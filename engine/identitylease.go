// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"sync"
	"time"
)

// identityLease is what a node knows of the identity that it holds, or waits for.
type identityLease struct {
	mu      sync.Mutex // guards what follows
	version string     // that it last stored, "" if that is not known
	trouble string     // why the last renewal failed, "" if it did not

	// The version of another holder's identity at the last look, and when that was first seen.
	seen  string
	since time.Time
}

// begin notes that the node has become the holder, and which version it stored; "" notes
// that it holds no identity.
func (l *identityLease) begin(version string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.version, l.trouble = version, ""
}

func (l *identityLease) setVersion(version string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.version = version
}

// storedVersion returns the version that the node last stored, "" if that is not known.
func (l *identityLease) storedVersion() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.version
}

// noteRenewal notes how a renewal has ended.
func (l *identityLease) noteRenewal(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trouble = ""
	if err != nil {
		l.trouble = err.Error()
	}
}

// whyNotRenewed returns why the last renewal failed, "" if it did not.
func (l *identityLease) whyNotRenewed() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.trouble
}

// noteOther notes which version another holder's identity has now, and returns when that
// version was first seen.
func (l *identityLease) noteOther(version string, now time.Time) (since time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen != version {
		l.seen, l.since = version, now
	}
	return l.since
}
