// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
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

// lineLocked returns a line's keys that identify the node, and then more. n.mu is held.
func (n *node) lineLocked(more ...any) []any {
	var who []any
	if n.status.DNSName != "" {
		who = append(who, "name", n.status.DNSName)
	}
	if len(n.logged.addrs) > 0 {
		who = append(who, "addresses", n.logged.addrs)
	}
	if n.status.NodeID != "" {
		who = append(who, "nodeID", n.status.NodeID)
	}
	return append(who, more...)
}

// line is lineLocked for callers that do not hold n.mu.
func (n *node) line(more ...any) []any {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.lineLocked(more...)
}

// tellStateLocked records that the log is about to have a line for a state, and reports
// whether that is news. n.mu is held.
func (n *node) tellStateLocked(s State) (news bool) {
	news = n.logged.state != s
	n.logged.state = s
	if s != Running { // so that its return is logged
		maps.DeleteFunc(n.logged.kinds, func(kind string, _ time.Time) bool { return strings.HasPrefix(kind, "running ") })
	}
	return news
}

// gone is the state of a node that has been removed, for the log alone.
const gone State = "gone"

// logAttached logs that the pod has its link, and the node begins to come up.
func (n *node) logAttached(took time.Duration) {
	n.mu.Lock()
	n.tellStateLocked(Pending)
	n.logged.ready = false
	line := n.lineLocked("link", n.rec.Link, "took", took.Round(time.Microsecond))
	n.mu.Unlock()
	n.log().Info("attached", line...)
}

// logState logs that the node has come to a state other than Pending and Running,
// unless that was logged.
func (n *node) logState(s State, msg string, more ...any) {
	n.mu.Lock()
	news, line := n.tellStateLocked(s), n.lineLocked(more...)
	n.logged.reason = ""
	n.mu.Unlock()
	if news {
		n.log().Info(msg, line...)
	}
}

// setPending publishes why the node is not up, and logs it: once, and again when
// it changes.
func (n *node) setPending(err error) {
	why := err.Error()
	n.setState(Pending, why)
	n.mu.Lock()
	msg := "not in the tailnet yet, trying again"
	if n.logged.ready {
		msg = "not running any more, trying again"
	}
	n.tellStateLocked(Pending)
	n.mu.Unlock()
	n.warnOnce(msg, why)
	n.tellDown(why)
}

// warnOnce logs why a node does not run or leave, unless that was the last such
// reason.
func (n *node) warnOnce(msg, why string) {
	n.mu.Lock()
	again, line := n.logged.reason == why, n.lineLocked("reason", why)
	n.logged.reason = why
	n.mu.Unlock()
	if !again {
		n.log().Warn(msg, line...)
	}
}

// logRunning logs that the node is up: once, and again when its addresses or its
// name change.
func (n *node) logRunning(p *progress) {
	n.mu.Lock()
	readyIn, requested := n.status.ReadyIn, n.status.Hostname
	n.logged.reason, n.logged.addrs = "", slices.Clone(p.addrs)
	n.tellStateLocked(Running)
	news := n.isNewsLocked("running " + p.identity())
	line := n.lineLocked("tags", p.tags.AsSlice())
	if !n.logged.ready {
		line = append(line, "readyIn", readyIn.Round(time.Millisecond))
	}
	n.logged.ready = true
	n.mu.Unlock()
	if !news {
		return
	}
	n.log().Info("running", line...)
	if assigned, _, _ := strings.Cut(p.dnsName, "."); assigned != requested {
		n.log().Warn("the tailnet gave the node another name than it asked for: a device with that name exists",
			"name", p.dnsName, "requested", requested, "assigned", assigned)
	}
}

// logCondition logs what is wrong with a node that is, or was, up; was is the earlier
// fault.
func (n *node) logCondition(c, was condition) {
	n.mu.Lock()
	if c.down {
		n.tellStateLocked(Pending)
	}
	level, msg, line := slog.LevelWarn, "running, but impaired", n.lineLocked("reason", c.text)
	switch {
	case c.down:
		msg = "not running any more"
	case c.kind == keyEnds:
		msg = "the node's key ends"
	case c.kind == "":
		level, msg, line = slog.LevelInfo, "no longer impaired", n.lineLocked("was", was.text)
	}
	n.mu.Unlock()
	if c.kind != "" || !was.down { // the end of a fault with which it was down is logged as "running"
		n.log().Log(n.e.ctx, level, msg, line...)
	}
}

// saidAgain is how long a line is not repeated in the log.
const saidAgain = 10 * time.Minute

// isNewsLocked reports whether the log has not had such a line recently.
func (n *node) isNewsLocked(kind string) bool {
	if time.Since(n.logged.kinds[kind]) < saidAgain {
		return false
	}
	maps.DeleteFunc(n.logged.kinds, func(_ string, at time.Time) bool { return time.Since(at) >= saidAgain })
	if n.logged.kinds == nil {
		n.logged.kinds = map[string]time.Time{}
	}
	n.logged.kinds[kind] = time.Now()
	return true
}
