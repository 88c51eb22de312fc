// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"strings"
	"sync"
	"time"

	"tailscale.com/tailcfg"
)

// reachPatience bounds the wait for a node to be reachable once it has its
// addresses: a tailnet may have no DERP server that can be reached, and still
// work.
const reachPatience = 5 * time.Second

// reach finds out when a peer can reach a node: its endpoints have arrived at
// the control plane, and it listens at its home DERP server. A peer that
// knows the node before that loses its first handshake, since it goes over
// DERP, and waits five seconds for the next.
//
// Only the client's log tells (control/controlclient/direct.go, newEndpoints;
// auto.go, updateRoutine; wgengine/magicsock/derp.go, runDerpReader). That is
// brittle, so nothing depends on it but the moment at which a node is called
// Running, and a test holds it.
type reach struct {
	mu        sync.Mutex
	known     time.Time // when the client learnt of endpoints
	published bool      // an update that began after that has been answered
	relayed   bool      // connected to a DERP server
}

const (
	formatNewEndpoints = "[v2] client.newEndpoints(%v)"
	formatUpdated      = "[v1] successful lite map update in %v"
	formatRelayed      = "magicsock: derp-%d connected; connGen=%v"
)

// observe takes in a line of the log and reports whether the node can be
// reached from then on.
func (r *reach) observe(format string, args []any, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case strings.HasSuffix(format, formatNewEndpoints):
		if eps, ok := args[len(args)-1].([]tailcfg.Endpoint); ok && len(eps) > 0 && r.known.IsZero() {
			r.known = now
		}
		return false
	case strings.HasSuffix(format, formatUpdated):
		// The log rounds to milliseconds.
		took, ok := args[len(args)-1].(time.Duration)
		r.published = r.published || ok && !r.known.IsZero() && !now.Add(time.Millisecond-took).Before(r.known)
	case strings.HasSuffix(format, formatRelayed):
		r.relayed = true
	default:
		return false
	}
	return r.published && r.relayed
}

const formatReceived = "Received error: %v"

// thrownOut reports whether the line says that the control plane no longer
// knows the node: its device was deleted. The backend takes that for a passing
// fault, stays Running and asks again for ever
// (control/controlclient/direct.go, sendMapRequest; the line is written by
// ipn/ipnlocal/local.go, setControlClientStatusLocked).
func thrownOut(format string, args []any) bool {
	if format != formatReceived || len(args) != 1 {
		return false
	}
	err, ok := args[0].(error)
	return ok && strings.Contains(err.Error(), "404") && strings.Contains(err.Error(), "node not found")
}
