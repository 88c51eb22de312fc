// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"cmp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/types/netmap"

	"tailscale-nri/engine/tailnet"
)

// expiryNotice is how long before the end of a node's key its log and its status
// say so.
const expiryNotice = 7 * 24 * time.Hour

// expiry watches the end of a node's key. Tailscale gives a tagged device's key no end.
// Headscale's admin can set one, and a user's devices there may have one.
type expiry struct {
	forGood atomic.Bool // the login server takes no new key

	mu    sync.Mutex
	at    time.Time
	timer *time.Timer // fires when it is time for the notice; nil if the key has no end
	said  string      // the last notice about that end
	over  bool        // the session has ended
}

// note records what the control plane says of the key's end.
func (x *expiry) note(s *session, nm *netmap.NetworkMap) {
	at := nm.SelfKeyExpiry()
	if nm.Cached || at.Before(time.Now()) {
		at = time.Time{} // if it has expired, the backend's state says so
	}
	tn := s.n.tailnet() // which may take n.op
	x.mu.Lock()
	defer x.mu.Unlock()
	if at.Equal(x.at) || x.over {
		return
	}
	x.at, x.said = at, ""
	if x.timer != nil {
		x.timer.Stop()
		x.timer = nil
	}
	if at.IsZero() {
		return
	}
	notice := tailnet.KeyEnds(tn, string(nm.SelfNode.StableID()), nm.SelfNode.Tags().Len() > 0, at).Error()
	ahead := cmp.Or(s.n.e.cfg.expiryNotice, expiryNotice)
	x.timer = time.AfterFunc(max(time.Until(at.Add(-ahead)), 0), func() { x.say(s.n, at, notice) })
}

// say has the status and the log say that the key ends at that time.
func (x *expiry) say(n *node, at time.Time, notice string) {
	x.mu.Lock()
	late := x.over || !at.Equal(x.at)
	if !late {
		x.said = notice
	}
	x.mu.Unlock()
	if !late {
		n.remark(notice) // and the log at the session's next look at its condition
	}
}

// stop ends the watch.
func (x *expiry) stop() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.over = true
	if x.timer != nil {
		x.timer.Stop()
	}
}

// notice returns what was last reported of the key's end.
func (x *expiry) notice() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.said
}

// observe reads the backend's log for one answer of a login server. Headscale answers a
// tagged node, which comes with a good auth key and a new node key, that its key has
// expired (control/controlclient/direct.go, doLogin).
func (x *expiry) observe(format string, args []any) (forGood bool) {
	if format != formatReceived || len(args) != 1 {
		return false
	}
	err, ok := args[0].(error)
	if ok && strings.Contains(err.Error(), "regen=true but server says NodeKeyExpired") {
		x.forGood.Store(true)
		return true
	}
	return false
}

// whyThrown returns the error of a session whose node the tailnet has thrown out.
func (s *session) whyThrown() error {
	if s.expiry.forGood.Load() {
		return tailnet.KeyStaysExpired(s.n.snapshot().NodeID)
	}
	return errLoginNeeded
}
