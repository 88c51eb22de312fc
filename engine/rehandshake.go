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

// rehandshake pings the peers that had a session with an earlier process. Their
// sessions ended with it, and they would notice only by a timeout of many seconds. A
// handshake from our side tells them now.
func (s *session) rehandshake(ctx context.Context, peers []tailcfg.StableNodeID) {
	nm := s.b.NetMapWithPeers()
	if nm == nil {
		return
	}
	for _, peer := range nm.Peers {
		if peer.Addresses().Len() == 0 || !slices.Contains(peers, peer.StableID()) {
			continue
		}
		opens := s.opens(peer.StableID())
		s.n.e.spawn(func() { s.rehandshakePeer(ctx, peer, opens) })
	}
}

// rehandshakePeer pings until the peer has answered through WireGuard. A disco ping
// finds the path, and shows that the peer is up; only then does a TSMP ping open the
// session. A handshake that is lost, or that crosses one of the peer's own, would be
// repeated after five seconds. So the peer is reset, and the next ping begins another
// at once.
//
// Of two nodes of this engine one opens the session; the other only finds the path for
// its answers: see heldDevice.
func (s *session) rehandshakePeer(ctx context.Context, peer tailcfg.NodeView, opens bool) {
	const tries, longest = 20, 2 * time.Second
	addr, patience := peer.Addresses().At(0).Addr(), 100*time.Millisecond
	for range tries {
		rtt, heard := s.ping(ctx, addr, tailcfg.PingDisco, patience)
		if heard && !opens || ctx.Err() != nil {
			return
		}
		if heard {
			if _, ok := s.ping(ctx, addr, tailcfg.PingTSMP, max(patience, 4*rtt)); ok || ctx.Err() != nil {
				return
			}
			s.b.engine.ResetPeer(peer.Key())
		}
		patience = min(2*patience, longest)
	}
}

// ping reports how long the answer took, and whether it came in time. A lost ping is
// never answered (ipn/ipnlocal/local.go, Ping).
func (s *session) ping(ctx context.Context, addr netip.Addr, kind tailcfg.PingType, patience time.Duration) (rtt time.Duration, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	start := time.Now()
	_, err := s.b.Ping(ctx, addr, kind, 0)
	return time.Since(start), err == nil
}

// opens reports whether this node opens the session with a peer that had one.
func (s *session) opens(peer tailcfg.StableNodeID) bool {
	return !slices.Contains(s.local, peer) || s.n.snapshot().NodeID < string(peer)
}

// releaseHeld releases the device once all the nodes that it waits for have a session.
func (s *session) releaseHeld(states map[tailcfg.StableNodeID]ipn.PeerState) {
	s.local = slices.DeleteFunc(s.local, func(id tailcfg.StableNodeID) bool {
		return states[id].PeerWireGuardState == ipn.PeerWireGuardStateEstablished
	})
	if len(s.local) == 0 {
		s.held.Release()
	}
}

// recentPrune is the least time between two writes of the record for no other reason
// than that sessions have ended: with a peer that comes and goes each end would be one.
// After the process was killed, peers whose sessions ended since then are pinged as well,
// which costs a few packets.
const recentPrune = 10 * time.Minute

// recentPeers are the peers in the record whose sessions have ended.
type recentPeers struct {
	ended map[tailcfg.StableNodeID]bool
	due   <-chan time.Time // when they are to be removed, nil while there are none
	next  time.Time        // the earliest time of it
}

func newRecentPeers() recentPeers {
	return recentPeers{ended: map[tailcfg.StableNodeID]bool{}, next: time.Now().Add(recentPrune)}
}

func (r *recentPeers) end(peer tailcfg.StableNodeID) {
	r.ended[peer] = true
	if r.due == nil {
		r.due = time.After(time.Until(r.next))
	}
}

// remember records the peers that have a session, for rehandshake after a restart: a new
// one at once. One whose session has ended is removed later.
func (s *session) remember(states map[tailcfg.StableNodeID]ipn.PeerState) {
	was := s.n.record().Recent
	recent := slices.Clone(was)
	for id, state := range states {
		known := slices.Contains(recent, id)
		switch state.PeerWireGuardState {
		case ipn.PeerWireGuardStateEstablished:
			delete(s.recent.ended, id)
			if !known {
				recent = append(recent, id)
			}
		case ipn.PeerWireGuardStateNone:
			if known {
				s.recent.end(id)
			}
		}
	}
	if len(recent) > len(was) {
		s.n.update(func(r *record) { r.Recent = recent })
	}
}

// pruneRecent removes the peers from the record whose sessions have ended.
func (s *session) pruneRecent() {
	ended := s.recent.ended
	s.recent = newRecentPeers()
	gone := func(id tailcfg.StableNodeID) bool { return ended[id] }
	if was := s.n.record().Recent; slices.ContainsFunc(was, gone) {
		recent := slices.DeleteFunc(slices.Clone(was), gone)
		s.n.update(func(r *record) { r.Recent = recent })
	}
}

// forgetPeers has the recorded peers removed that are no longer in the tailnet: some may
// have left while no process could see it.
func (s *session) forgetPeers() {
	nm := s.b.NetMapWithPeers()
	if nm == nil || nm.Cached {
		return
	}
	for _, id := range s.n.record().Recent {
		if !slices.ContainsFunc(nm.Peers, func(p tailcfg.NodeView) bool { return p.StableID() == id }) {
			s.recent.end(id)
		}
	}
}
