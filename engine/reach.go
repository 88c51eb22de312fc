// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"fmt"
	"regexp"
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
// brittle, so nothing depends on it but when a node is called Running, and tests
// hold it.
type reach struct {
	mu        sync.Mutex
	known     time.Time       // when the client learnt of endpoints
	published bool            // an update that began after that has been answered
	relayed   bool            // has been connected to a DERP server
	regions   map[string]bool // to whose DERP servers it is connected now
	refused   string          // the control plane's answer to the last request that failed
}

const (
	formatNewEndpoints = "[v2] client.newEndpoints(%v)"
	formatUpdated      = "[v1] successful lite map update in %v"
	formatRelayed      = "magicsock: derp-%d connected; connGen=%v"
	formatNotRelayed   = "derp.Recv(derp-%d): %v"
	formatRelayClosed  = "closing connection to derp-%v (%v), age %v"
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
		if r.regions == nil {
			r.regions = map[string]bool{}
		}
		r.regions[fmt.Sprint(args[len(args)-2])] = true
	case strings.HasSuffix(format, formatNotRelayed):
		delete(r.regions, fmt.Sprint(args[len(args)-2]))
		return false
	case strings.HasSuffix(format, formatRelayClosed):
		delete(r.regions, fmt.Sprint(args[len(args)-3]))
		return false
	default:
		return false
	}
	return r.published && r.relayed
}

// isRelayed reports whether the node is connected to a DERP server.
func (r *reach) isRelayed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.regions) > 0
}

// What the client says of a map request that failed: of its poll
// (ipn/ipnlocal/local.go, setControlClientStatusLocked), and of an update of its
// endpoints (control/controlclient/auto.go, updateRoutine).
const (
	formatReceived  = "Received error: %v"
	formatNotPosted = "lite map update error after %v: %v"
)

// failedRequest returns the error of a map request that failed, if the line is of
// one.
func failedRequest(format string, args []any) error {
	if format != formatReceived && format != formatNotPosted || len(args) == 0 {
		return nil
	}
	err, _ := args[len(args)-1].(error)
	return err
}

// thrownOut reports whether the line says that the control plane no longer
// knows the node: its device was deleted. The backend takes that for a passing
// fault, stays Running and asks again forever
// (control/controlclient/direct.go, sendMapRequest).
func thrownOut(format string, args []any) bool {
	err := failedRequest(format, args)
	return err != nil && strings.Contains(err.Error(), "404") && strings.Contains(err.Error(), "node not found")
}

// refusalAnswer matches an answer that is a refusal: waiting does not help.
var refusalAnswer = regexp.MustCompile(`initial fetch failed (4\d\d: [^\n]*)`)

// noteFailure keeps the control plane's answer, if it is a refusal.
func (r *reach) noteFailure(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refused = ""
	if m := refusalAnswer.FindStringSubmatch(err.Error()); m != nil && !strings.HasPrefix(m[1], "408") && !strings.HasPrefix(m[1], "429") {
		r.refused = "HTTP " + m[1]
	}
}

// refusedWith returns the control plane's last answer, if it was a refusal.
func (r *reach) refusedWith() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refused
}
