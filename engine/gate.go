// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"sync"
	"time"

	"github.com/tailscale/wireguard-go/tun"
)

// gatePatience bounds how long a packetGate may stay closed.
const gatePatience = 500 * time.Millisecond

// packetGate is a device that reads nothing until it is opened. What the pod sends
// meanwhile waits in the packet socket's buffer.
//
// It is for two nodes of this process that had a session and come back at the
// same time, with connections open between their pods. The first packet of each
// would begin a handshake: before the other is up, which costs five seconds, or at
// the same instant, so that each overwrites the other's, which costs as much. While
// the gates are closed, one node repeats the handshake with the other (see
// rehandshake). With local delivery only a ping or a fragment goes through
// WireGuard, and no gate is closed.
type packetGate struct {
	tun.Device

	open     chan struct{}
	openOnce sync.Once
}

// newPacketGate returns a packetGate, open or closed.
func newPacketGate(d tun.Device, closed bool) *packetGate {
	g := &packetGate{Device: d, open: make(chan struct{})}
	if !closed {
		g.Open()
	}
	return g
}

// Open lets reads through from now on.
func (g *packetGate) Open() { g.openOnce.Do(func() { close(g.open) }) }

// Read waits until the gate is open.
func (g *packetGate) Read(slab []byte, packets []tun.ReadPacket) (int, error) {
	<-g.open
	return g.Device.Read(slab, packets)
}

// Close opens the gate, so that a Read that waits ends.
func (g *packetGate) Close() error {
	err := g.Device.Close()
	g.Open()
	return err
}
