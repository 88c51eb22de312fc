// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"errors"
	"sync/atomic"
	"time"

	"tailscale-nri/engine/internal/podnet"
)

// listing is the runtime's statement about the node's sandbox when it last listed
// all.
type listing int

const (
	unknown listing = iota
	listedLive
	listedEnded
	listedSuccessor // the pod with another sandbox, which has not been attached yet
	notListed
)

// listedGraces is how many grace periods a pod has whose sandbox the runtime
// lists as ended.
const listedGraces = 10

// sandboxEnd is what is known of the end of a node's sandbox. The runtime does not always
// announce one, and a pod may get another sandbox after it: the node's identity, which
// cannot be restored, is given up only once it is certain that no other sandbox follows.
//
// node.op guards it, but for stopped.
type sandboxEnd struct {
	stopped   atomic.Bool // it was detached; written under node.op, read without
	removed   bool        // the runtime has removed it, and its pod may have another
	seen      bool        // this process has reached its netns
	list      listing
	awaited   string    // the sandbox whose end awaitEnd waits for, "" if none
	goneSince time.Time // its netns, as far as decide has seen; zero while it is there
}

// begin resets what is known, for a sandbox that was just attached.
func (s *sandboxEnd) begin() {
	s.seen, s.removed, s.list, s.goneSince = true, false, unknown, time.Time{}
	s.stopped.Store(false)
}

// noteRemoved notes that the runtime has removed the sandbox, whose pod may get another.
func (s *sandboxEnd) noteRemoved(now time.Time) { s.removed, s.goneSince = true, now }

// mayFollow reports whether another sandbox of the pod is likely to follow, or to be
// there already, if this one is removed: retried says that it is not the pod's first.
func (s *sandboxEnd) mayFollow(retried bool) bool { return retried || s.list == listedSuccessor }

// mayBeUnannounced reports whether an end of the sandbox would be one of which the
// runtime has said nothing, or no more than that in its list.
func (s *sandboxEnd) mayBeUnannounced() bool {
	return s.list != listedSuccessor && (!s.stopped.Load() || s.list == listedEnded)
}

// beginWait reports whether no goroutine waits for the sandbox's end yet, and notes that one does.
func (s *sandboxEnd) beginWait(sandboxID string) bool {
	first := s.awaited != sandboxID
	s.awaited = sandboxID
	return first
}

// endWait notes that no goroutine waits for the sandbox's end any more.
func (s *sandboxEnd) endWait(sandboxID string) {
	if s.awaited == sandboxID {
		s.awaited = ""
	}
}

// untilDue is the grace period, or what is left of it: the runtime may have
// removed the sandbox while its end was waited for already.
func (s *sandboxEnd) untilDue(now time.Time, grace time.Duration) time.Duration {
	if left := grace - now.Sub(s.goneSince); !s.goneSince.IsZero() && left > 0 {
		return left
	}
	return grace
}

// decision says what to do about a sandbox that may have ended.
type decision int

const (
	lookLater  decision = iota
	keepListed          // look later, and say that it is kept for another sandbox
	serveAgain          // it is there after all
	giveUp              // it has ended for good: the node leaves
)

// sight is one look at a sandbox that may have ended.
type sight struct {
	at      time.Time
	netns   error // nil if it is there, podnet.ErrGone if it is not; any other says nothing
	retried bool  // it is not the pod's first sandbox
	active  bool  // the node is doing something
}

// decide takes in a look at the sandbox.
func (s *sandboxEnd) decide(look sight, grace time.Duration) decision {
	if !errors.Is(look.netns, podnet.ErrGone) && !s.removed {
		s.goneSince = time.Time{}
		if look.netns != nil || look.active || s.stopped.Load() || s.list == notListed || s.list == listedEnded {
			return lookLater
		}
		return serveAgain
	}
	if s.goneSince.IsZero() {
		s.goneSince = look.at
	}
	switch {
	case s.mayGiveUp(look, grace):
		return giveUp
	case s.list == listedEnded:
		return keepListed
	}
	return lookLater
}

// keptUntil is when a sandbox that the runtime lists as ended is given up.
func (s *sandboxEnd) keptUntil(grace time.Duration) time.Time {
	return s.goneSince.Add(listedGraces * grace)
}

// mayGiveUp reports whether a netns that cannot be found is reason enough to
// give the identity up, which cannot be had back. The runtime's word settles
// it: a sandbox that it no longer lists has been removed, one that it lists as
// ended may get a successor. One that it lists as live cannot be seen from here, and is
// not gone, unless this process has seen it before.
func (s *sandboxEnd) mayGiveUp(look sight, grace time.Duration) bool {
	waited := look.at.Sub(s.goneSince)
	switch {
	case s.list == listedSuccessor:
		return false
	case s.list == notListed && !s.removed && !look.retried:
		return true
	case s.list == listedEnded && !s.removed:
		return waited >= listedGraces*grace
	}
	return waited >= grace && (s.seen || s.removed || s.list == notListed)
}
