// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"cmp"
	"context"
	"net"
	"slices"
	"sync"
	"time"

	"tailscale.com/net/netmon"
	"tailscale.com/net/netns"
	"tailscale.com/net/tsdial"
	"tailscale.com/types/logger"
)

// After a restart two kinds of work take turns, since there are fewer processors than
// nodes. The first is the start of the nodes that an earlier process served: they forward
// again as soon as they have started from their last netmaps. The second is what they
// then exchange with their control plane, which is most of the work and changes nothing
// for their pods.
//
// returnPatience bounds how long the second waits for the first: a node that hangs must
// not hold up the others.
const returnPatience = 2 * time.Second

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

// resumeAll resumes the recorded nodes, those with connections first.
func (e *Engine) resumeAll() {
	defer e.returning.begin()()
	nodes := e.snapshot()
	slices.SortStableFunc(nodes, func(a, b *node) int {
		return cmp.Compare(min(len(b.record().Recent), 1), min(len(a.record().Recent), 1))
	})
	for _, n := range nodes {
		n.resume()
	}
}

// controlDialer returns a dialer that waits its turn once. The control client
// dials with it (controlclient.Options.Dialer), magicsock and the packets' way
// do not. The constructor is meant for debugging, and the only one that takes a
// function: apart from that, this is the dialer as it always is.
func (n *node) controlDialer(monitor *netmon.Monitor, logf logger.Logf, conns *connections) *tsdial.Dialer {
	system, turn := netns.NewDialer(logf, monitor), sync.Once{}
	return tsdial.NewFromFuncForDebug(logf, func(ctx context.Context, network, addr string) (net.Conn, error) {
		turn.Do(func() { n.e.returning.wait(ctx, returnPatience) })
		conn, err := system.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return conns.add(conn), nil
	})
}
