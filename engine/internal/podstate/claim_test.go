// SPDX-License-Identifier: BSD-3-Clause

package podstate

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"
)

// claimLater claims the directory in the background, and returns when it is
// known that somebody else has it.
func claimLater(t *testing.T, ctx context.Context, dir string) <-chan error {
	t.Helper()
	waits, claimed := make(chan struct{}), make(chan error, 1)
	go func() {
		c, err := ClaimState(ctx, dir, func() { close(waits) })
		if err == nil {
			err = c.Release()
		}
		claimed <- err
	}()
	select {
	case <-waits:
	case err := <-claimed:
		t.Fatalf("claimed what another has (%v)", err)
	}
	return claimed
}

// One process has the state directory; the next gets it when that one lets go,
// and stops waiting when it is told to.
func TestClaim(t *testing.T) {
	dir := t.TempDir()
	first, err := ClaimState(t.Context(), dir, func() { t.Error("nobody else has it") })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	impatient, patient := claimLater(t, ctx, dir), claimLater(t, t.Context(), dir)
	cancel()
	if err := <-impatient; !errors.Is(err, context.Canceled) {
		t.Errorf("the one that was told to stop: %v", err)
	}
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	if err := <-patient; err != nil {
		t.Errorf("the one that waited: %v", err)
	}
}

// A directory that was removed and created again during the wait is claimed, not the
// one that is gone.
func TestClaimOfRecreatedDirectory(t *testing.T) {
	dir := t.TempDir() + "/state"
	old, err := ClaimState(t.Context(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	claimed := claimLater(t, t.Context(), dir)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	recreated, err := ClaimState(t.Context(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	old.Release()
	select {
	case err := <-claimed:
		t.Fatalf("claimed a directory that is gone, while another has the one that is there (%v)", err)
	case <-time.After(100 * time.Millisecond):
	}
	recreated.Release()
	if err := <-claimed; err != nil {
		t.Error(err)
	}
}
