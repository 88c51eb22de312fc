// SPDX-License-Identifier: BSD-3-Clause

package hostnet

import (
	"fmt"
	"sync"
	"time"

	"tailscale.com/net/netmon"
	"tailscale.com/types/logger"
	"tailscale.com/util/eventbus"
)

// Monitor watches the host's network for all nodes of the process. A backend that
// is given no monitor makes one of its own: a netlink socket that hears of each
// pod that comes or goes, and asks for all interfaces again each time. With 200
// pods that was half of all memory that their starts allocate.
type Monitor struct {
	*netmon.Monitor // for backends and their dialers; none of them closes it

	bus *eventbus.Bus // where it publishes, which nobody reads
}

// NewMonitor watches the network of the calling thread's namespace, until Close.
func NewMonitor(logf logger.Logf) (*Monitor, error) {
	theInterfaces() // so that the first state has what later ones have
	bus := eventbus.New()
	m, err := netmon.New(bus, logf)
	if err != nil {
		bus.Close()
		return nil, fmt.Errorf("watching this host's network: %w", err)
	}
	m.Start()
	return &Monitor{m, bus}, nil
}

// Close ends the watching. Followers are told nothing more.
func (m *Monitor) Close() {
	_ = m.Monitor.Close()
	m.bus.Close()
}

// Follower publishes the changes of the host's network on the bus of one node,
// where the parts of its backend expect those of a monitor of their own.
type Follower struct {
	monitor   *netmon.Monitor
	client    *eventbus.Client
	publisher *eventbus.Publisher[netmon.ChangeDelta]
	forget    func()

	mu    sync.Mutex
	ready bool
	seen  *netmon.State // by the node
	slept time.Duration // of the host, and not published yet
}

// Follow returns a follower for the node that has the bus. It publishes nothing
// before Ready. It has the monitor look at the host: a node that starts is not to depend
// on what the monitor has heard of.
func (m *Monitor) Follow(bus *eventbus.Bus) *Follower {
	f := &Follower{monitor: m.Monitor, client: bus.Client("hostnet"), seen: m.InterfaceState()}
	f.publisher = eventbus.Publish[netmon.ChangeDelta](f.client)
	f.forget = m.RegisterChangeCallback(func(d *netmon.ChangeDelta) { f.changed(d.JumpDuration) })
	m.Poll()
	return f
}

// Ready says that the whole backend has subscribed. What has changed since Follow
// is published now.
func (f *Follower) Ready() {
	f.mu.Lock()
	f.ready = true
	f.mu.Unlock()
	f.changed(0)
}

// Stop ends the following.
func (f *Follower) Stop() {
	f.forget()
	f.client.Close() // which a waiting Publish returns from
}

// changed publishes what is new to the node. The monitor calls it in a goroutine
// for each change, so it goes by the state as it is and not by the order of calls.
func (f *Follower) changed(slept time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.slept = max(f.slept, slept)
	now := f.monitor.InterfaceState()
	if !f.ready || f.slept == 0 && f.seen.Equal(now) {
		return
	}
	delta, err := netmon.NewChangeDelta(f.seen, now, f.slept, false)
	if err != nil {
		return // only without a state, and a monitor always has one
	}
	f.seen, f.slept = now, 0
	f.publisher.Publish(*delta)
}
