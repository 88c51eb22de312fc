// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"sync"
	"time"

	"github.com/tailscale/wireguard-go/tun"
)

// holdPatience bounds how long a heldDevice may hold back what a pod sends.
const holdPatience = 500 * time.Millisecond

// heldDevice is a device whose reads wait until it is released. What the pod sends
// meanwhile waits in the packet socket's buffer.
//
// It is for two nodes of this process that had a session and are started again at the
// same time, with connections open between their pods. The first packet of each would
// begin a handshake. If the other is not up yet, that costs five seconds. If both begin
// at the same instant, each overwrites the other's handshake, which costs as much. While
// the devices are held, one node repeats the handshake with the other (see
// rehandshake). With local delivery only a ping or a fragment goes through
// WireGuard, and no device is held.
type heldDevice struct {
	tun.Device

	released    chan struct{}
	releaseOnce sync.Once
}

// newHeldDevice returns a heldDevice. Unless hold is set, it is released already.
func newHeldDevice(d tun.Device, hold bool) *heldDevice {
	h := &heldDevice{Device: d, released: make(chan struct{})}
	if !hold {
		h.Release()
	}
	return h
}

// Release lets reads through from now on.
func (h *heldDevice) Release() { h.releaseOnce.Do(func() { close(h.released) }) }

// Read waits until the device is released.
func (h *heldDevice) Read(slab []byte, packets []tun.ReadPacket) (int, error) {
	<-h.released
	return h.Device.Read(slab, packets)
}

// Close releases the device, so that a Read that waits ends.
func (h *heldDevice) Close() error {
	err := h.Device.Close()
	h.Release()
	return err
}
