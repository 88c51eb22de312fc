// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// published is what others are told of a node: its status, its lines in the log
// (statelog.go) and its news (change.go). The type node embeds it, with setState,
// setPending, log and so on. The node tells it what to publish: it looks at nothing
// itself and waits for nothing.
type published struct {
	redact func(string) string // takes secrets out of a reason; nil removes none
	queue  *newsQueue          // where news goes

	// logger names the pod and its sandbox. What still serves the sandbox before reads it
	// while an attach of the next one writes it.
	logger  atomic.Pointer[slog.Logger]
	chatter *chatter // of tailscale.com, in the log
	way     way      // up; has a lock of its own, taken with mu held

	mu        sync.Mutex // guards what follows; held across nothing
	status    NodeStatus
	linked    string        // the sandbox that has its whole link
	relogin   bool          // the tailnet has thrown the node out: log in again
	suffering condition     // what is wrong with it while it is up
	broken    string        // what is wrong with ts0, "" if nothing is known to be
	uneasy    string        // what was wrong with it too often, "" if that is over
	logged    loggedState   // what has been logged
	told      told          // what has been queued
	changed   chan struct{} // closed when status changes, nil while nobody waits for that
}

// begin publishes what the record says of a node for which this process has done
// nothing yet.
func (p *published) begin(e *Engine, r *record) {
	p.redact, p.queue, p.chatter, p.way.tally = e.cfg.Redact, e.changes, newChatter(), e.tally
	p.status.State, p.status.Since = Stopped, time.Now()
	p.status.NodeID = string(r.NodeID)
	p.told.nodeID = p.status.NodeID
	p.relogin = r.NodeID != "" && r.TagsDue // the key may give it others now
	p.setLogger(e.log, &r.Pod)
	p.setPod(&r.Pod)
}

// redacted returns a reason as others may read it.
func (p *published) redacted(reason string) string {
	if p.redact == nil {
		return reason
	}
	return p.redact(reason)
}

// setLogger has the node's lines name the pod and its sandbox.
func (p *published) setLogger(l *slog.Logger, pod *Pod) {
	p.logger.Store(l.With("pod", pod.Namespace+"/"+pod.Name, "uid", pod.UID, "sandbox", shortID(pod.SandboxID)))
}

// setPod publishes whose node it is.
func (p *published) setPod(pod *Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &p.status
	s.SandboxID, s.UID = pod.SandboxID, pod.UID
	s.Namespace, s.Pod, s.Hostname, s.Features = pod.Namespace, pod.Name, pod.Hostname, pod.Features
}

// setNodeID publishes which device the node is, "" if it is none.
func (p *published) setNodeID(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status.NodeID = id
}

// setLoggedIn publishes which device the node is, which the tailnet knows: it is not to
// log in again. It reports whether it was.
func (p *published) setLoggedIn(id string) (again bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	again, p.relogin = p.relogin, false
	p.status.NodeID = id
	return again
}

// setReason publishes why the node is in the state that it is in.
func (p *published) setReason(why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status.Reason = why
}

// clearAddresses publishes that ts0 has none.
func (p *published) clearAddresses() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status.Addresses = nil
}

// current is the node's status, as far as it is published by itself: see
// node.snapshot.
func (p *published) current() NodeStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.status
	s.Addresses = slices.Clone(s.Addresses)
	switch {
	case p.broken != "" && (s.State == Running || s.State == Pending):
		s.State, s.Reason = Pending, p.broken
	case p.uneasy != "" && s.State == Running:
		s.Reason = p.uneasy
	}
	return s
}

// setGuarded publishes what the guard has found: what is wrong with ts0, and what was
// too often.
func (p *published) setGuarded(broken, uneasy string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.broken, p.uneasy = broken, uneasy
	p.tellGuardedLocked()
}

// clearGuarded is setGuarded for a node that is no longer guarded: it does not change
// whether the node is up.
func (p *published) clearGuarded() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.broken, p.uneasy = "", ""
}

// tellGuardedLocked says whether ts0 keeps the node from being up. p.mu is held.
func (p *published) tellGuardedLocked() {
	switch s := p.status.State; {
	case p.broken == "" && p.told.news != "": // else it is yet to come up
		p.tellUpLocked()
	case p.broken != "" && (s == Running || s == Pending):
		p.tellDownLocked(p.broken)
	}
}

// setBroken publishes what is wrong with ts0, and reports whether that is news.
func (p *published) setBroken(why string) (news bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	news, p.broken = p.broken != why, why
	p.tellGuardedLocked()
	return news
}

// log is the node's log.
func (p *published) log() *slog.Logger { return p.logger.Load() }

func (p *published) sandboxID() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status.SandboxID
}

func (p *published) loginNeeded() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.relogin
}

func (p *published) setLoginNeeded() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.relogin = true
}

// setLinked notes that the sandbox has its link, and whether that is whole. n.op is held.
func (p *published) setLinked(whole bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.linked = ""
	if whole {
		p.linked = p.status.SandboxID
	}
}

// linkedSandbox is the sandbox that this process has last seen the whole link of.
func (p *published) linkedSandbox() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.linked
}

// setAttachTime begins the count of the time until the node is up.
func (p *published) setAttachTime(t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status.AttachedAt, p.status.ReadyIn = t, 0
}
