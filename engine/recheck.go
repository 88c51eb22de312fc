// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"tailscale.com/tstime"

	"tailscale-nri/engine/tailnet"
)

// Tailscale's control plane ends the poll of a device that is deleted, and answers the
// next one with an error. Headscale (0.29.0) lets the poll go on forever, with its
// keep-alives, and says so only when it is asked again. So a control server that is not
// Tailscale's is asked now and then. If it has an API, that is asked once for all nodes.
// Otherwise each node opens its control connection again.
const recheckEvery = 5 * time.Minute // half of it to one and a half times it

// recheck looks, until ctx is done, whether the devices of the profile's nodes that
// run are still there.
func (e *Engine) recheck(ctx context.Context, profile string) {
	if tailnet.IsTailscales(e.tailnets[profile].ControlURL()) {
		return
	}
	pause := cmp.Or(e.cfg.recheckEvery, recheckEvery)
	api := e.tailnets[profile].api
	for tstime.Sleep(ctx, pause/2+rand.N(pause)) {
		if api == nil {
			e.recheckPolls(ctx, profile, pause/2)
		} else if err := e.recheckDevices(ctx, api, profile); err != nil && ctx.Err() == nil {
			e.log.Debug("looking whether the devices are still there, again later", "err", err)
		}
	}
}

// recheckDevices asks the API once for all, and for each that is missing once
// more.
func (e *Engine) recheckDevices(ctx context.Context, api tailnet.DeviceAPI, profile string) error {
	sessions := e.runningSessions(profile)
	if len(sessions) == 0 {
		return nil
	}
	devices, err := api.Devices(ctx)
	if err != nil {
		return err
	}
	for _, s := range sessions {
		id := s.n.snapshot().NodeID
		if id == "" || slices.ContainsFunc(devices, func(d tailnet.Device) bool { return d.ID == id }) {
			continue
		}
		if _, err := api.Device(ctx, id); errors.Is(err, tailnet.ErrNoDevice) {
			s.throwOut()
		} else if err != nil {
			return err
		}
	}
	return nil
}

// recheckPolls has the nodes ask the control plane again, over some time.
func (e *Engine) recheckPolls(ctx context.Context, profile string, over time.Duration) {
	sessions := e.runningSessions(profile)
	for _, s := range sessions {
		s.b.control.cut()
		if !tstime.Sleep(ctx, over/time.Duration(len(sessions))) {
			return
		}
	}
}

// runningSessions are those of the profile's nodes that are Running.
func (e *Engine) runningSessions(profile string) (sessions []*session) {
	for _, n := range e.snapshot() {
		if s := n.runningSession(); s != nil && n.profile() == profile && n.snapshot().State == Running {
			sessions = append(sessions, s)
		}
	}
	return sessions
}

// throwOut has the node log in again: the tailnet no longer has its device.
func (s *session) throwOut() {
	select {
	case s.thrown <- struct{}{}:
	default:
	}
}

// connections are the connections to the control plane.
type connections struct {
	mu   sync.Mutex
	open map[*controlConn]struct{}
}

// controlConn is a connection that can be cut.
type controlConn struct {
	net.Conn
	of *connections
}

// add returns the connection as one that can be cut.
func (c *connections) add(conn net.Conn) net.Conn {
	cc := &controlConn{conn, c}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = map[*controlConn]struct{}{}
	}
	c.open[cc] = struct{}{}
	return cc
}

// Close implements [net.Conn].
func (c *controlConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// cut closes all of them; the control client opens another at once.
func (c *connections) cut() {
	c.mu.Lock()
	var open []*controlConn
	for conn := range c.open {
		open = append(open, conn)
	}
	c.mu.Unlock()
	for _, conn := range open {
		conn.Close()
	}
}
