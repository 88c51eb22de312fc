// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"errors"
	"testing"
	"time"
)

// Another holder's lease is measured from the first look at a version.
func TestLeaseOfAnother(t *testing.T) {
	var l identityLease
	start := time.Now()
	for _, look := range []struct {
		version   string
		at, since time.Duration
	}{{"1", 0, 0}, {"1", time.Minute, 0}, {"2", 2 * time.Minute, 2 * time.Minute}, {"2", time.Hour, 2 * time.Minute}} {
		if got := l.noteOther(look.version, start.Add(look.at)).Sub(start); got != look.since {
			t.Errorf("version %s, looked at after %v, was first seen after %v, want %v", look.version, look.at, got, look.since)
		}
	}
}

// A renewal that succeeds clears the trouble; so does a new lease.
func TestLeaseRenewals(t *testing.T) {
	var l identityLease
	l.begin("7")
	l.noteRenewal(errors.New("the store is away"))
	if got := l.whyNotRenewed(); got != "the store is away" || l.storedVersion() != "7" {
		t.Errorf("version %q, trouble %q", l.storedVersion(), got)
	}
	l.setVersion("")
	if l.noteRenewal(nil); l.whyNotRenewed() != "" || l.storedVersion() != "" {
		t.Errorf("version %q, trouble %q", l.storedVersion(), l.whyNotRenewed())
	}
	l.noteRenewal(errors.New("the store is away"))
	if l.begin("8"); l.whyNotRenewed() != "" || l.storedVersion() != "8" {
		t.Errorf("version %q, trouble %q", l.storedVersion(), l.whyNotRenewed())
	}
}
