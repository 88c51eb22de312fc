// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// The log has one line for each change of a node's state: attached (Pending), running,
// not running any more (Pending again), stopped, leaving the tailnet, node removed.
// Each has the pod, and what is known of the node by then: its name and addresses in
// the tailnet and the ID of its device. A reason of something that is tried again is
// logged once.

// loggedState is the last logged state of a node.
type loggedState struct {
	state  State
	addrs  []netip.Addr
	reason string               // why it does not run
	ready  bool                 // it runs, or has run, since it was attached
	kinds  map[string]time.Time // when the log had a line of a kind

	impaired bool // the log has a fault of it while it is up, and not yet its end
}

// lineLocked returns a line's keys that identify the node, and then more. p.mu is held.
func (p *published) lineLocked(more ...any) []any {
	var who []any
	if p.status.DNSName != "" {
		who = append(who, "name", p.status.DNSName)
	}
	if len(p.logged.addrs) > 0 {
		who = append(who, "addresses", p.logged.addrs)
	}
	if p.status.NodeID != "" {
		who = append(who, "nodeID", p.status.NodeID)
	}
	return append(who, more...)
}

// line is lineLocked for callers that do not hold p.mu.
func (p *published) line(more ...any) []any {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lineLocked(more...)
}

// tellStateLocked records that the log is about to have a line for a state, and reports
// whether that is news. p.mu is held.
func (p *published) tellStateLocked(s State) (news bool) {
	news = p.logged.state != s
	p.logged.state = s
	if s != Running { // so that its return is logged
		maps.DeleteFunc(p.logged.kinds, func(kind string, _ time.Time) bool { return strings.HasPrefix(kind, "running ") })
	}
	return news
}

// gone is the state of a node that has been removed, for the log alone.
const gone State = "gone"

// logAttached logs that the pod has its link, and the node begins to come up.
func (p *published) logAttached(link string, took time.Duration) {
	p.mu.Lock()
	p.tellStateLocked(Pending)
	p.logged.ready = false
	line := p.lineLocked("link", link, "took", took.Round(time.Microsecond))
	p.mu.Unlock()
	p.log().Info("attached", line...)
}

// logState logs that the node has come to a state other than Pending and Running,
// unless that was logged.
func (p *published) logState(s State, msg string, more ...any) {
	p.mu.Lock()
	news, line := p.tellStateLocked(s), p.lineLocked(more...)
	p.logged.reason = ""
	p.mu.Unlock()
	if news {
		p.log().Info(msg, line...)
	}
}

// setPending publishes why the node is not up, and logs it: once, and again when
// it changes.
func (p *published) setPending(err error) {
	why := err.Error()
	p.setState(Pending, why)
	p.mu.Lock()
	msg := "not in the tailnet yet, trying again"
	if p.logged.ready {
		msg = "not running any more, trying again"
	}
	p.tellStateLocked(Pending)
	p.mu.Unlock()
	p.warnOnce(msg, why)
	p.tellDown(why)
}

// warnOnce logs why a node does not run or leave, unless that was the last such
// reason.
func (p *published) warnOnce(msg, why string) {
	p.mu.Lock()
	again, line := p.logged.reason == why, p.lineLocked("reason", why)
	p.logged.reason = why
	p.mu.Unlock()
	if !again {
		p.log().Warn(msg, line...)
	}
}

// logRunning logs that the node is up: once, and again when its addresses or its
// name change.
func (p *published) logRunning(up *progress) {
	p.mu.Lock()
	readyIn, requested := p.status.ReadyIn, p.status.Hostname
	p.logged.reason, p.logged.addrs = "", slices.Clone(up.addrs)
	p.tellStateLocked(Running)
	news := p.isNewsLocked("running " + up.identity())
	line := p.lineLocked("tags", up.tags.AsSlice())
	if !p.logged.ready {
		line = append(line, "readyIn", readyIn.Round(time.Millisecond))
	}
	p.logged.ready = true
	p.mu.Unlock()
	if !news {
		return
	}
	p.log().Info("running", line...)
	if assigned, _, _ := strings.Cut(up.dnsName, "."); assigned != requested {
		p.log().Warn("the tailnet gave the node another name than it asked for: a device with that name exists",
			"name", up.dnsName, "requested", requested, "assigned", assigned)
	}
}

// logCondition logs what is wrong with a node that is, or was, up; was is the earlier
// fault.
func (p *published) logCondition(c, was condition) {
	p.mu.Lock()
	if c.down {
		p.tellStateLocked(Pending)
	}
	level, msg, line := slog.LevelWarn, "running, but impaired", p.lineLocked("reason", c.text)
	switch {
	case c.down:
		msg = "not running any more"
	case c.kind == keyEnds:
		msg = "the node's key ends"
	case c.kind == "":
		level, msg, line = slog.LevelInfo, "no longer impaired", p.lineLocked("was", was.text)
	}
	p.mu.Unlock()
	if c.kind != "" || !was.down { // the end of a fault with which it was down is logged as "running"
		p.log().Log(context.Background(), level, msg, line...)
	}
}

// saidAgain is how long a line is not repeated in the log.
const saidAgain = 10 * time.Minute

// isNews is isNewsLocked for callers that do not hold p.mu.
func (p *published) isNews(kind string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.isNewsLocked(kind)
}

// isNewsLocked reports whether the log has not had such a line recently. p.mu is held.
func (p *published) isNewsLocked(kind string) bool {
	if time.Since(p.logged.kinds[kind]) < saidAgain {
		return false
	}
	maps.DeleteFunc(p.logged.kinds, func(_ string, at time.Time) bool { return time.Since(at) >= saidAgain })
	if p.logged.kinds == nil {
		p.logged.kinds = map[string]time.Time{}
	}
	p.logged.kinds[kind] = time.Now()
	return true
}
