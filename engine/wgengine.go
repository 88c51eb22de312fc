// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"sync"

	"tailscale.com/types/key"
	"tailscale.com/wgengine"
	"tailscale.com/wgengine/wgcfg"
)

// wgEngine is a WireGuard engine that can end the session with a peer.
type wgEngine struct {
	wgengine.Engine

	resetting sync.Mutex // one ResetPeer at a time

	mu      sync.Mutex
	without key.NodePublic // the peer that the device is told to know nothing of, zero if none
}

// SetPeerConfigFunc implements [wgengine.Engine].
func (e *wgEngine) SetPeerConfigFunc(fn func(key.NodePublic) (wgcfg.PeerConfig, bool)) {
	e.Engine.SetPeerConfigFunc(func(k key.NodePublic) (wgcfg.PeerConfig, bool) {
		e.mu.Lock()
		without := e.without
		e.mu.Unlock()
		if k == without {
			return wgcfg.PeerConfig{}, false
		}
		return fn(k)
	})
}

// ResetPeer ends the session with the peer and forgets all of it, so that the
// next packet begins a handshake at once. WireGuard itself begins none within
// five seconds of the last one, and [wgengine.Engine.MarkDevicePeerForHandshake]
// keeps to that.
//
// The device makes a peer when it needs one, of what LocalBackend then says of
// it, and drops it when it is asked to look again and hears that there is no
// such peer.
func (e *wgEngine) ResetPeer(k key.NodePublic) {
	e.resetting.Lock()
	defer e.resetting.Unlock()
	e.setWithout(k)
	defer e.setWithout(key.NodePublic{})
	e.SyncDevicePeer(k)
}

func (e *wgEngine) setWithout(k key.NodePublic) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.without = k
}
