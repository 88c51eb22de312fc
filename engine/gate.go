// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"sync"
	"time"

	"github.com/tailscale/wireguard-go/tun"
)

// gatePatience bounds how long a gate may stay shut.
const gatePatience = 500 * time.Millisecond

// gate is a device that reads nothing until it is opened. What the pod sends
// meanwhile waits in the packet socket's buffer.
//
// It is for two nodes of this process that had a session and come back at the
// same time, with their pods in the middle of a conversation. The first packet
// of each would begin a handshake: before the other is up, which costs five
// seconds, or at the same instant, so that each overwrites the other's, which
// costs as much. Shut, they let one greet the other first. With local delivery
// only a ping or a fragment would meet that, and none is shut.
type gate struct {
	tun.Device

	open     chan struct{}
	openOnce sync.Once
}

// newGate returns a gate that is open unless shut.
func newGate(d tun.Device, shut bool) *gate {
	g := &gate{Device: d, open: make(chan struct{})}
	if !shut {
		g.Open()
	}
	return g
}

// Open lets reads through from now on.
func (g *gate) Open() { g.openOnce.Do(func() { close(g.open) }) }

// Read waits until the gate is open.
func (g *gate) Read(slab []byte, packets []tun.ReadPacket) (int, error) {
	<-g.open
	return g.Device.Read(slab, packets)
}

// Close opens the gate, so that a Read that waits ends.
func (g *gate) Close() error {
	err := g.Device.Close()
	g.Open()
	return err
}
