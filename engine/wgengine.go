// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/gaissmai/bart"
	"tailscale.com/net/dns"
	"tailscale.com/net/routemanager"
	"tailscale.com/types/key"
	"tailscale.com/wgengine"
	"tailscale.com/wgengine/router"
	"tailscale.com/wgengine/wgcfg"
)

// wgEngine is a WireGuard engine that can end the session with a peer. It also answers
// two questions as the WireGuard device itself would: which peer an address belongs to,
// and which addresses a peer may send from. LocalBackend hands both to the engine as
// functions, and calls the engine whenever their answers have changed.
type wgEngine struct {
	wgengine.Engine

	// changes counts those calls: answers from before the last one may no longer be
	// true.
	changes atomic.Uint64
	peerOf  atomic.Pointer[peerLookup]
	sources atomic.Pointer[peerConfig]
	self    atomic.Pointer[key.NodePublic] // the node's own key, nil while it is not in a tailnet
	rewrite atomic.Bool                    // a peer is jailed, or known under another address

	selfMu  sync.Mutex
	renamed func(was, is *key.NodePublic) // called for each change of self; may be nil

	// configureDNS returns the part of the tailnet's configuration for the backend's
	// resolver; if it is nil, that is all of it.
	configureDNS func(*dns.Config) *dns.Config

	resetting sync.Mutex // one ResetPeer at a time
	sessions  peerSessions

	mu      sync.Mutex
	without key.NodePublic // the peer that the device must not know, zero for none
}

type (
	peerLookup func(netip.Addr) (key.NodePublic, bool)
	peerConfig func(key.NodePublic) (wgcfg.PeerConfig, bool)
)

// SetPeerByIPPacketFunc implements [wgengine.Engine].
func (e *wgEngine) SetPeerByIPPacketFunc(fn func(netip.Addr) (key.NodePublic, bool)) {
	e.peerOf.Store((*peerLookup)(&fn))
	e.changes.Add(1)
	e.Engine.SetPeerByIPPacketFunc(fn)
}

// SetPeerConfigFunc implements [wgengine.Engine].
func (e *wgEngine) SetPeerConfigFunc(fn func(key.NodePublic) (wgcfg.PeerConfig, bool)) {
	e.sources.Store((*peerConfig)(&fn))
	e.changes.Add(1)
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

// SetPeerRoutes implements [wgengine.Engine]. LocalBackend calls it after every
// change of its peers (ipn/ipnlocal/local.go, setDataPlanePeerRoutes).
func (e *wgEngine) SetPeerRoutes(self4, self6 netip.Addr, routes *bart.Table[*routemanager.PeerRoute]) {
	e.rewrite.Store(routes != nil)
	e.changes.Add(1)
	e.Engine.SetPeerRoutes(self4, self6, routes)
}

// SyncDevicePeer implements [wgengine.Engine].
func (e *wgEngine) SyncDevicePeer(k key.NodePublic) {
	e.changes.Add(1)
	e.Engine.SyncDevicePeer(k)
}

// Reconfig implements [wgengine.Engine]. The node is known by its key only while
// WireGuard and ts0 are set up for it.
func (e *wgEngine) Reconfig(cfg *wgcfg.Config, rcfg *router.Config, dcfg *dns.Config) error {
	if self := e.self.Load(); self != nil && (cfg.PrivateKey.IsZero() || cfg.PrivateKey.Public() != *self) {
		e.setSelf(key.NodePrivate{})
	}
	defer e.setSelf(cfg.PrivateKey)
	if e.configureDNS != nil {
		dcfg = e.configureDNS(dcfg)
	}
	return e.Engine.Reconfig(cfg, rcfg, dcfg)
}

// ResetAndStop implements [wgengine.Engine].
func (e *wgEngine) ResetAndStop() (*wgengine.Status, error) {
	e.setSelf(key.NodePrivate{})
	return e.Engine.ResetAndStop()
}

// Close implements [wgengine.Engine].
func (e *wgEngine) Close() {
	e.setSelf(key.NodePrivate{})
	e.Engine.Close()
}

func (e *wgEngine) setSelf(k key.NodePrivate) {
	var self *key.NodePublic
	if !k.IsZero() {
		public := k.Public()
		self = &public
	}
	e.selfMu.Lock()
	defer e.selfMu.Unlock()
	was := e.self.Swap(self)
	e.changes.Add(1)
	same := was == self || was != nil && self != nil && *was == *self
	if e.renamed != nil && !same {
		e.renamed(was, self)
	}
}

// onSelf has fn called for each change of the node's key from now on: first with the
// present key, and last, when stop is called, with its loss.
func (e *wgEngine) onSelf(fn func(was, is *key.NodePublic)) (stop func()) {
	e.selfMu.Lock()
	defer e.selfMu.Unlock()
	e.renamed = fn
	fn(nil, e.self.Load())
	return func() {
		e.selfMu.Lock()
		defer e.selfMu.Unlock()
		e.renamed = nil
		fn(e.self.Load(), nil)
	}
}

// peerAt returns the key of the peer that packets for the address go to.
func (e *wgEngine) peerAt(addr netip.Addr) (key.NodePublic, bool) {
	fn := e.peerOf.Load()
	if fn == nil || *fn == nil {
		return key.NodePublic{}, false
	}
	return (*fn)(addr)
}

// mayComeFrom reports whether the peer may send packets from the address, which
// is the peer's alone.
func (e *wgEngine) mayComeFrom(peer key.NodePublic, addr netip.Addr) bool {
	fn := e.sources.Load()
	if fn == nil || *fn == nil {
		return false
	}
	conf, ok := (*fn)(peer)
	if !ok {
		return false
	}
	for _, p := range conf.AllowedIPs {
		if p.IsSingleIP() && p.Addr() == addr {
			return true
		}
	}
	return false
}

// ResetPeer ends the session with the peer and forgets all of it, so that the
// next packet begins a handshake at once. WireGuard itself begins none within
// five seconds of the last one, and [wgengine.Engine.MarkDevicePeerForHandshake]
// keeps to that.
//
// The device makes a peer when it needs one, from what LocalBackend then says of it. It
// drops the peer when it is asked to check it and LocalBackend does not know it.
func (e *wgEngine) ResetPeer(k key.NodePublic) {
	e.resetting.Lock()
	defer e.resetting.Unlock()
	e.setWithout(k)
	defer e.setWithout(key.NodePublic{})
	e.Engine.SyncDevicePeer(k)
}

func (e *wgEngine) setWithout(k key.NodePublic) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.without = k
}
