// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"testing"

	"tailscale-nri/engine/internal/podnet"
)

// What is found out by serving a node is known to the next session.
func TestServing(t *testing.T) {
	s := newServing(true)
	if session, device := s.current(); session != nil || device != nil {
		t.Error("a node that was never served has a session or a device")
	}
	session, device := &session{}, &podnet.Device{}
	s.setSession(session)
	s.setDevice(device)
	if gotSession, gotDevice := s.current(); gotSession != session || gotDevice != device {
		t.Error("the session and the device are others")
	}
	s.setSession(nil)
	if gotSession, gotDevice := s.current(); gotSession != nil || gotDevice != device {
		t.Error("the device goes with the session: its counters are shown after it")
	}
	if !s.setBare(false) || s.setBare(true) || !s.setBare(true) {
		t.Error("setBare does not return what was known before")
	}
	if !s.requestsTags() || !s.dropTags() || s.requestsTags() || s.dropTags() {
		t.Error("tags are dropped once, and for good")
	}

	s.hasReturned()
	calls := 0
	end := func() { calls++ }
	s.returned.Store(&end)
	if s.hasReturned(); calls != 1 {
		t.Errorf("%d calls", calls)
	}
}

// However much is changed while the guard does not look, it looks once.
func TestGuardedWakes(t *testing.T) {
	g := newGuarded()
	for range 3 {
		g.wake()
	}
	if len(g.changed) != 1 {
		t.Errorf("it is to look %d times", len(g.changed))
	}
	g.drain()
	g.drain()
	if len(g.changed) != 0 {
		t.Error("it is to look again")
	}
	if g.note(podnet.Change{}); len(g.changed) != 0 {
		t.Error("a change of no link that it has wakes it")
	}
	if missing, err := g.restoreFence(); len(missing) > 0 || err != nil {
		t.Errorf("a pod without a fence: %v, %v", missing, err)
	}
	if router, missing, err := g.restoreLink(); router != nil || len(missing) > 0 || err != nil {
		t.Errorf("a pod without a link: %v, %v, %v", router, missing, err)
	}
}
