// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"tailscale.com/health"
	"tailscale.com/ipn"
	"tailscale.com/tailcfg"
	"tailscale.com/tsconst"
)

// "Running" has to be true now, so a node that is up is looked at again as long as it
// is served. The backend's own state is not enough: it stays Running whatever happens
// to DERP, the control plane or the signature of the node's key.
const (
	conditionEvery = 15 * time.Second
	// degradedAfter is how long the control plane or DERP must have been away for the
	// status to say so. cutOffAfter is how long DERP must have been away, with no peer
	// connected, until the node is no longer Running.
	degradedAfter = time.Minute
	cutOffAfter   = 2 * time.Minute
)

// condition is a fault of a node that is up.
type condition struct {
	kind string // equal for equal causes; "" for none
	text string
	down bool // the node is not Running
}

// keyEnds is the kind of the only condition without an effect yet.
const keyEnds = "key-ends"

// stopwatch measures how long something has lasted.
type stopwatch struct{ since time.Time }

// note records whether it lasts, and returns for how long it has.
func (s *stopwatch) note(lasts bool, now time.Time) time.Duration {
	switch {
	case !lasts:
		s.since = time.Time{}
		return 0
	case s.since.IsZero():
		s.since = now
	}
	return now.Sub(s.since)
}

// watch is a session's knowledge of its node's condition.
type watch struct {
	due               *time.Ticker
	noDERP, noControl stopwatch
	live              map[tailcfg.StableNodeID]bool // peers with a WireGuard session
	degraded, cutOff  time.Duration
	look              bool // something may have changed
}

func newWatch(cfg *Config) watch {
	return watch{
		due:      time.NewTicker(cmp.Or(cfg.conditionEvery, conditionEvery)),
		live:     map[tailcfg.StableNodeID]bool{},
		degraded: cmp.Or(cfg.degradedAfter, degradedAfter), cutOff: cmp.Or(cfg.cutOffAfter, cutOffAfter),
	}
}

// hear records one notification: which peers have a session, and whether
// tailscale.com's health has changed.
func (w *watch) hear(note *ipn.Notify) {
	w.look = w.look || note.Health != nil
	for id, state := range note.PeerState {
		switch state.PeerWireGuardState {
		case ipn.PeerWireGuardStateEstablished:
			w.live[id] = true
		case ipn.PeerWireGuardStateNone:
			delete(w.live, id)
		}
	}
}

// condition returns what is wrong now, the worst first.
func (s *session) condition(now time.Time) condition {
	h, w := s.b.sys.HealthTracker.Get(), &s.watch
	warnings := h.CurrentState().Warnings
	noDERP := w.noDERP.note(s.hasDERP() && (!s.reach.isRelayed() || isUnhealthy(warnings, derpWarnings)), now)
	noControl := w.noControl.note(!h.GetInPollNetMap() || isUnhealthy(warnings, controlWarnings), now)
	refused := s.reach.refusedWith()
	switch {
	case h.TKAHealth() != nil: //nolint:staticcheck // tailscale.com has no Warnable for it yet
		return condition{"locked", "locked out by tailnet lock: no peer talks to a node whose key is not signed; on a node with a trusted signing key run: tailscale lock sign " +
			s.b.NodeKey().String(), true}
	case noControl >= w.degraded && refused != "":
		return condition{"refused", "the control plane refuses the node: " + refused, true}
	case noDERP >= w.cutOff && len(w.live) == 0:
		return condition{"cut-off", fmt.Sprintf("no DERP server has been reached since %s, and no peer is connected: check this host's way out, TCP 443 and UDP",
			w.noDERP.since.Format(time.TimeOnly)), true}
	case noControl >= w.degraded:
		return condition{"no-control", fmt.Sprintf("the control plane has not been reached since %s: peers are as last known; check this host's way out, TCP 443 to the control server",
			w.noControl.since.Format(time.TimeOnly)), false}
	case noDERP >= w.degraded:
		return condition{"no-DERP", fmt.Sprintf("no DERP server has been reached since %s: only peers with a direct path reach the pod; check this host's way out, TCP 443",
			w.noDERP.since.Format(time.TimeOnly)), false}
	}
	if c := s.routeCondition(); c.kind != "" {
		return c
	}
	if said := controlSays(warnings); said != "" {
		return condition{"control: " + said, "the control plane says: " + said, false}
	}
	if why := s.n.identityTrouble(); why != "" {
		return condition{"identity", why, false}
	}
	if ends := s.expiry.notice(); ends != "" {
		return condition{keyEnds, ends, false}
	}
	return condition{text: s.n.e.cfg.Remark} // no kind: it is no fault of this node's, and is logged once for all
}

// These are the warnings of tailscale.com's health about DERP, or the control plane,
// being away. They come late. Without a poll of the control plane, the tracker clears the
// warning of a missing DERP connection at each look (health/health.go,
// updateBuiltinWarnablesLocked), and a missing poll shows after 8 minutes. So connections
// and polls count as well.
var (
	derpWarnings    = []health.WarnableCode{tsconst.HealthWarnableDERPTimedOut, tsconst.HealthWarnableNetworkStatus}
	controlWarnings = []health.WarnableCode{tsconst.HealthWarnableNotInMapPoll, tsconst.HealthWarnableMapResponseTimeout}
)

func isUnhealthy(warnings map[health.WarnableCode]health.UnhealthyState, any []health.WarnableCode) bool {
	return slices.ContainsFunc(any, func(c health.WarnableCode) bool { _, is := warnings[c]; return is })
}

// controlSays returns what the control plane wants the node's user to read.
func controlSays(warnings map[health.WarnableCode]health.UnhealthyState) string {
	for _, code := range slices.Sorted(maps.Keys(warnings)) {
		if strings.HasPrefix(string(code), "control-health.") {
			return strings.TrimSuffix(warnings[code].Title+": "+warnings[code].Text, ": ")
		}
	}
	return ""
}

// hasDERP reports whether the tailnet has DERP servers at all.
func (s *session) hasDERP() bool {
	nm := s.b.NetMapNoPeers()
	return nm != nil && nm.DERPMap != nil && len(nm.DERPMap.Regions) > 0
}

// publish publishes how the node is, if it is up. A node that registers again is not
// up: what it has then belongs to a device that the tailnet does not know.
func (s *session) publish(ctx context.Context) {
	if !s.p.complete() || s.registering || !s.watch.look && s.p.reported == s.p.identity() {
		return
	}
	s.watch.look = false
	c := s.condition(time.Now())
	if c.down {
		s.p.reported = ""
	} else {
		s.ready(ctx)
	}
	s.n.setCondition(c)
}

// setCondition publishes the node's fault, and logs it: when it begins and when it is over.
// A fault that comes and goes is not logged each time.
func (p *published) setCondition(c condition) {
	if c.down {
		p.setState(Pending, c.text)
		p.tellDown(c.text)
	} else {
		p.remark(c.text)
	}
	p.mu.Lock()
	was := p.suffering
	p.suffering = c
	news := c.kind != was.kind && p.isConditionNewsLocked(c.kind)
	p.mu.Unlock()
	if news {
		p.logCondition(c, was)
	}
}

// isConditionNewsLocked reports whether the log is to say that a condition of that kind
// has begun. If a condition was logged, the end of all of them ("") is logged too, so
// that the last line is not about a condition that is over. p.mu is held.
func (p *published) isConditionNewsLocked(kind string) bool {
	switch {
	case kind == "":
		news := p.logged.impaired
		p.logged.impaired = false
		return news
	case !p.isNewsLocked(kind):
		return false
	}
	p.logged.impaired = true
	return true
}
