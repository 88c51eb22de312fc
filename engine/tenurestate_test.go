// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"errors"
	"testing"
	"time"
)

// The lease of another holder is measured from the first look at a version.
func TestTenureOfAnother(t *testing.T) {
	var s tenure
	start := time.Now()
	for _, look := range []struct {
		version   string
		at, since time.Duration
	}{{"1", 0, 0}, {"1", time.Minute, 0}, {"2", 2 * time.Minute, 2 * time.Minute}, {"2", time.Hour, 2 * time.Minute}} {
		if got := s.noteOther(look.version, start.Add(look.at)).Sub(start); got != look.since {
			t.Errorf("version %s, looked at after %v, was first seen after %v, want %v", look.version, look.at, got, look.since)
		}
	}
}

// A renewal that succeeds takes the trouble back; so does a new tenure.
func TestTenureRenewals(t *testing.T) {
	var s tenure
	s.begin("7")
	s.noteRenewal(errors.New("the store is away"))
	if got := s.whyNotRenewed(); got != "the store is away" || s.storedVersion() != "7" {
		t.Errorf("version %q, trouble %q", s.storedVersion(), got)
	}
	s.setVersion("")
	if s.noteRenewal(nil); s.whyNotRenewed() != "" || s.storedVersion() != "" {
		t.Errorf("version %q, trouble %q", s.storedVersion(), s.whyNotRenewed())
	}
	s.noteRenewal(errors.New("the store is away"))
	if s.begin("8"); s.whyNotRenewed() != "" || s.storedVersion() != "8" {
		t.Errorf("version %q, trouble %q", s.storedVersion(), s.whyNotRenewed())
	}
}
