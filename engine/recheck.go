// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"net"
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
//
// Each time is half of what is said here to one and a half times that. In a large
// tailnet, or with a slow server, a list takes long: the pause is listShare times as long
// as that, up to recheckEvery, which is also what follows a refusal.
const (
	recheckEvery     = 5 * time.Minute
	recheckListEvery = time.Minute
	listShare        = 50
	// recheckGets is how many devices that the list does not have are asked for one by
	// one each time: all hosts share the API's limit.
	recheckGets = 20
)

// recheck looks, until ctx is done, whether the devices of the profile's nodes that
// run are still there.
func (e *Engine) recheck(ctx context.Context, profile string) {
	if tailnet.IsTailscales(e.tailnets[profile].ControlURL()) {
		return
	}
	pause := cmp.Or(e.cfg.recheckEvery, recheckEvery)
	api := e.tailnets[profile].api
	if api != nil {
		pause = cmp.Or(e.cfg.recheckEvery, recheckListEvery)
	}
	for tstime.Sleep(ctx, pause/2+rand.N(pause)) {
		if api == nil {
			e.recheckPolls(ctx, profile, pause/2)
			continue
		}
		start := time.Now()
		err := e.recheckDevices(ctx, api, profile)
		if err != nil && ctx.Err() == nil {
			e.log.Debug("looking whether the devices are still there, again later", "err", err)
		}
		if e.cfg.recheckEvery == 0 {
			pause = pauseAfterList(time.Since(start), err)
		}
	}
}

// pauseAfterList returns when the API is asked again.
func pauseAfterList(took time.Duration, err error) time.Duration {
	if err != nil {
		return recheckEvery
	}
	return min(max(recheckListEvery, listShare*took), recheckEvery)
}

// recheckDevices asks the API once for all, and for some of those that are missing once
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
	for _, s := range missing(sessions, devices) {
		if _, err := api.Device(ctx, s.n.snapshot().NodeID); errors.Is(err, tailnet.ErrNoDevice) {
			s.throwOut()
		} else if err != nil {
			return err
		}
	}
	return nil
}

// missing returns at most recheckGets of the sessions whose device the list does not have.
func missing(sessions []*session, devices []tailnet.Device) (out []*session) {
	listed := make(map[string]bool, len(devices))
	for _, d := range devices {
		listed[d.ID] = true
	}
	for _, s := range sessions {
		if id := s.n.snapshot().NodeID; id != "" && !listed[id] {
			out = append(out, s)
		}
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out[:min(len(out), recheckGets)]
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
