// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"errors"
	"testing"
	"time"

	"tailscale-nri/engine/internal/podnet"
)

// What is done about a sandbox that may have ended, by what the runtime and the kernel
// say of it, and for how long its netns has been gone.
func TestSandboxEndDecides(t *testing.T) {
	const grace = time.Minute
	errUnreadable := errors.New("no permission")
	type state struct {
		list             listing
		stopped, removed bool
		seen             bool
	}
	for _, tt := range []struct {
		name   string
		is     state
		look   sight // at is the time since the first look
		before bool  // there was a first look
		want   decision
	}{
		// The netns is there.
		{name: "there, and idle", want: serveAgain},
		{name: "there, listed as live", is: state{list: listedLive}, want: serveAgain},
		{name: "there, with a successor", is: state{list: listedSuccessor}, want: serveAgain},
		{name: "there, and served", look: sight{active: true}, want: lookLater},
		{name: "there, but detached", is: state{stopped: true}, want: lookLater},
		{name: "there, but not listed", is: state{list: notListed}, want: lookLater},
		{name: "there, but listed as ended", is: state{list: listedEnded}, want: lookLater},
		{name: "not to be known", look: sight{netns: errUnreadable}, want: lookLater},
		{name: "not to be known for long", look: after(time.Hour, sight{netns: errUnreadable}), before: true, want: lookLater},

		// It is gone, and the runtime has said nothing.
		{name: "gone just now", is: state{seen: true}, look: sight{netns: podnet.ErrGone}, want: lookLater},
		{name: "gone for less than the grace period", is: state{seen: true}, look: after(grace-1, sight{netns: podnet.ErrGone}), before: true, want: lookLater},
		{name: "gone for the grace period", is: state{seen: true}, look: after(grace, sight{netns: podnet.ErrGone}), before: true, want: giveUp},
		{name: "gone, but never seen by this process", look: after(20*grace, sight{netns: podnet.ErrGone}), before: true, want: lookLater},
		{name: "listed as live and never seen", is: state{list: listedLive}, look: after(20*grace, sight{netns: podnet.ErrGone}), before: true, want: lookLater},

		// The runtime's list settles it.
		{name: "not listed", is: state{list: notListed}, look: sight{netns: podnet.ErrGone}, want: giveUp},
		{name: "not listed, of several", is: state{list: notListed}, look: sight{netns: podnet.ErrGone, retried: true}, want: lookLater},
		{name: "not listed, of several, for long", is: state{list: notListed}, look: after(grace, sight{netns: podnet.ErrGone, retried: true}), before: true, want: giveUp},
		{name: "with a successor", is: state{list: listedSuccessor, seen: true}, look: after(20*grace, sight{netns: podnet.ErrGone}), before: true, want: lookLater},
		{name: "listed as ended", is: state{list: listedEnded, seen: true}, look: after(grace, sight{netns: podnet.ErrGone}), before: true, want: keepListed},
		{name: "listed as ended, for long", is: state{list: listedEnded}, look: after(listedGraces*grace, sight{netns: podnet.ErrGone}), before: true, want: giveUp},

		// The runtime has removed the sandbox: whether its netns is there does not count.
		{name: "removed just now", is: state{removed: true, stopped: true}, look: sight{retried: true}, want: lookLater},
		{name: "removed", is: state{removed: true, stopped: true}, look: after(grace, sight{retried: true}), before: true, want: giveUp},
		{name: "removed, not listed", is: state{removed: true, list: notListed}, look: sight{}, want: lookLater},
		{name: "removed, listed as ended", is: state{removed: true, list: listedEnded}, look: after(grace, sight{}), before: true, want: giveUp},
		{name: "removed, with a successor", is: state{removed: true, list: listedSuccessor}, look: after(20*grace, sight{}), before: true, want: lookLater},
	} {
		t.Run(tt.name, func(t *testing.T) {
			first := time.Now()
			s := sandboxEnd{list: tt.is.list, removed: tt.is.removed, seen: tt.is.seen}
			s.stopped.Store(tt.is.stopped)
			if tt.before {
				s.goneSince = first
			}
			look := tt.look
			look.at = first.Add(look.at.Sub(time.Time{}))
			if got := s.decide(look, grace); got != tt.want {
				t.Errorf("decision %d, want %d", got, tt.want)
			}
			if gone := errors.Is(look.netns, podnet.ErrGone) || tt.is.removed; s.goneSince.IsZero() == gone {
				t.Errorf("its netns is gone since %v", s.goneSince)
			}
		})
	}
}

// after returns the look at that time after the first one.
func after(d time.Duration, look sight) sight {
	look.at = time.Time{}.Add(d)
	return look
}

// A sandbox that is attached has nothing of the end of the one before.
func TestSandboxEndBegins(t *testing.T) {
	now := time.Now()
	var s sandboxEnd
	s.stopped.Store(true)
	s.list = listedSuccessor
	s.noteRemoved(now)
	if got := s.untilDue(now.Add(time.Second), time.Minute); got != 59*time.Second {
		t.Errorf("a second after it was removed it is due in %v", got)
	}
	if got := s.untilDue(now.Add(time.Hour), time.Minute); got != time.Minute {
		t.Errorf("when it is overdue it is looked at again in %v", got)
	}
	s.begin()
	if got := s.decide(sight{at: now.Add(time.Hour)}, time.Minute); got != serveAgain {
		t.Errorf("decision %d, want %d", got, serveAgain)
	}
	if got := s.untilDue(now, time.Minute); got != time.Minute {
		t.Errorf("it is due in %v", got)
	}
	if s.mayFollow(false) || !s.mayFollow(true) {
		t.Error("another sandbox is expected of a pod that has had one, and of no other")
	}
}

// Its end is waited for once.
func TestSandboxEndIsAwaitedOnce(t *testing.T) {
	var s sandboxEnd
	if !s.beginWait("a") || s.beginWait("a") {
		t.Error("two wait for one sandbox, or none")
	}
	if !s.beginWait("b") {
		t.Error("nobody waits for the next sandbox")
	}
	s.endWait("a") // which was awaited before that
	if s.beginWait("b") {
		t.Error("two wait for one sandbox")
	}
	s.endWait("b")
	if !s.beginWait("b") {
		t.Error("nobody waits any more")
	}
}

// An end is unannounced unless the sandbox was detached, or its pod has another.
func TestSandboxEndUnannounced(t *testing.T) {
	for list, want := range map[listing][2]bool{ // not stopped, stopped
		unknown: {true, false}, listedLive: {true, false}, notListed: {true, false},
		listedEnded: {true, true}, listedSuccessor: {false, false},
	} {
		for i, stopped := range []bool{false, true} {
			s := sandboxEnd{list: list}
			s.stopped.Store(stopped)
			if got := s.mayBeUnannounced(); got != want[i] {
				t.Errorf("listing %d, stopped %v: %v", list, stopped, got)
			}
		}
	}
}
