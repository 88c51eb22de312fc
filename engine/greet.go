// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"tailscale.com/ipn"
	"tailscale.com/tailcfg"
)

// greet pings the peers that had a session with an earlier process. Their
// sessions ended with it, and they would find out only by a timeout of many
// seconds: a handshake from our side tells them now.
func (s *session) greet(ctx context.Context, peers []tailcfg.StableNodeID) {
	nm := s.b.NetMapWithPeers()
	if nm == nil {
		return
	}
	for _, peer := range nm.Peers {
		if peer.Addresses().Len() == 0 || !slices.Contains(peers, peer.StableID()) || !s.greeted(peer.StableID()) {
			continue
		}
		addr := peer.Addresses().At(0).Addr()
		s.n.e.spawn(func() { s.greetPeer(ctx, addr) })
	}
}

// greetPeer pings until the peer has answered through WireGuard. A disco ping
// opens the path, and shows that the peer is up; only then does a TSMP ping
// open the session, since a handshake that is lost costs five seconds. A ping
// that is lost is never answered, so each gets its time.
func (s *session) greetPeer(ctx context.Context, addr netip.Addr) {
	const tries, patience = 20, 250 * time.Millisecond
	ping := func(kind tailcfg.PingType) bool {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		_, err := s.b.Ping(ctx, addr, kind, 0)
		return err == nil
	}
	for try := range tries {
		heard := ping(tailcfg.PingDisco)
		if (heard || try == tries-1) && ping(tailcfg.PingTSMP) || ctx.Err() != nil {
			return
		}
	}
}

// greeted reports whether a peer that had a session is for us to greet. Of two
// nodes of ours only one greets the other: see gate.
func (s *session) greeted(peer tailcfg.StableNodeID) bool {
	return !slices.Contains(s.local, peer) || s.n.snapshot().NodeID < string(peer)
}

// openGate opens the gate once all the nodes that it waits for have a session.
func (s *session) openGate(states map[tailcfg.StableNodeID]ipn.PeerState) {
	s.local = slices.DeleteFunc(s.local, func(id tailcfg.StableNodeID) bool {
		return states[id].PeerWireGuardState == ipn.PeerWireGuardStateEstablished
	})
	if len(s.local) == 0 {
		s.gate.Open()
	}
}
