// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"net"
	"sync"
	"time"

	"tailscale.com/net/netmon"
	"tailscale.com/net/netns"
	"tailscale.com/net/tsdial"
	"tailscale.com/types/logger"
)

// On a machine with fewer processors than work, three kinds of work take turns:
//
//  1. hooks, which hold up the start of every pod of the machine, and take
//     milliseconds: see Engine.Attach;
//  2. the start of nodes, as many at a time as queue allows, and those that a
//     restart has interrupted first: a node that starts from its last netmap
//     forwards as soon as it has started;
//  3. what such a node says to its control plane, which is most of the work of
//     a start and changes nothing for its pod.
//
// Each waits for those before it, but never for long: a hook or a node that
// hangs must not keep the others from anything.
const (
	// hookPatience bounds how long the start of a node waits for hooks.
	hookPatience = 300 * time.Millisecond
	// hookLull is how long after a hook of a burst the next is expected, and
	// burstPause the greatest time between two hooks of one burst.
	hookLull   = 15 * time.Millisecond
	burstPause = 100 * time.Millisecond
	// returnPatience bounds how long a node's control connection waits for
	// nodes that are to start from their last netmaps.
	returnPatience = 2 * time.Second
)

// inFlight counts what is under way, so that others can wait until nothing is.
// Its zero value is ready to use.
type inFlight struct {
	mu   sync.Mutex
	n    int
	over chan struct{} // closed when n comes down to 0
}

// begin counts one more until the function returned is called for the first
// time.
func (f *inFlight) begin() (end func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n == 0 {
		f.over = make(chan struct{})
	}
	f.n++
	return sync.OnceFunc(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.n--; f.n == 0 {
			close(f.over)
		}
	})
}

// wait returns when nothing is under way, after the time given, or when ctx is
// done.
func (f *inFlight) wait(ctx context.Context, atMost time.Duration) {
	f.mu.Lock()
	n, over := f.n, f.over
	f.mu.Unlock()
	if n == 0 {
		return
	}
	patience := time.NewTimer(atMost)
	defer patience.Stop()
	select {
	case <-over:
	case <-patience.C:
	case <-ctx.Done():
	}
}

// hooks are the attaches that a runtime waits for.
type hooks struct {
	inFlight

	mu   sync.Mutex
	last time.Time // when one ended
}

// begin is that of inFlight. A hook of a burst counts a little longer than it
// takes, since the next one follows at once: the runtime makes one call at a time.
func (h *hooks) begin() (end func()) {
	h.mu.Lock()
	burst := time.Since(h.last) < burstPause
	h.mu.Unlock()
	over := h.inFlight.begin()
	return func() {
		h.mu.Lock()
		h.last = time.Now()
		h.mu.Unlock()
		if burst {
			time.AfterFunc(hookLull, over)
		} else {
			over()
		}
	}
}

// hasReturned notes that the node needs nobody's patience any more: it forwards,
// or has failed to.
func (n *node) hasReturned() {
	if end := n.returned.Load(); end != nil {
		(*end)()
	}
}

// controlDialer returns a dialer that waits its turn once. The control client
// dials with it (controlclient.Options.Dialer), magicsock and the packets' way
// do not.
func (n *node) controlDialer(monitor *netmon.Monitor, logf logger.Logf) *tsdial.Dialer {
	system, turn := netns.NewDialer(logf, monitor), sync.Once{}
	return tsdial.NewFromFuncForDebug(logf, func(ctx context.Context, network, addr string) (net.Conn, error) {
		turn.Do(func() {
			n.e.returning.wait(ctx, returnPatience)
			n.e.hooks.wait(ctx, hookPatience)
		})
		return system.DialContext(ctx, network, addr)
	})
}
