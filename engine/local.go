// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"tailscale.com/disco"
	"tailscale.com/net/packet"
	"tailscale.com/tailcfg"
	"tailscale.com/types/ipproto"
	"tailscale.com/types/key"
	"tailscale.com/wgengine/filter"

	"tailscale-nri/engine/internal/podnet"
)

// Two pods of one host need not have their packets encrypted, sent from this
// process to itself, and decrypted again. Local delivery hands a frame that one
// pod's link gave to the other pod's link, whole: 64 KB of TCP stay uncut.
//
// It delivers only what WireGuard and both packet filters would have let through. Each
// check asks the code that would decide on the way through WireGuard:
//
//   - the sender's backend says which peer has the destination. That must be the
//     receiving node, with the key that it has now, and the sender's WireGuard must be
//     configured for it;
//   - the receiver's backend says what that peer, the sending node under its own
//     key, may send from, and the source must be one of these addresses;
//   - the sender's filter decides on the way out, the receiver's on the way in.
//
// Packets that are refused, or that are not plain TCP or UDP, go by WireGuard instead.
// So a refusal, its counters and what the sender is told are always WireGuard's own,
// and local delivery only has to be sure of what it lets through.

// neighbours are the nodes of this engine that are in a tailnet, by the key that their
// peers know.
type neighbours struct {
	changes atomic.Uint64 // counts changes of byKey
	mu      sync.Mutex    // held to write byKey
	byKey   atomic.Pointer[map[key.NodePublic]*neighbour]
}

// neighbour is a node, as long as its backend and its device are open.
type neighbour struct {
	all    *neighbours
	engine *wgEngine
	device *podnet.Device

	// These belong to the goroutine that reads the device.
	parsed packet.Parsed
	routes map[flowEnds]localRoute
}

// flowEnds are the addresses of a packet.
type flowEnds struct{ src, dst netip.Addr }

// localRoute is the result for a pair of addresses, and its time.
type localRoute struct {
	to                  *neighbour // the neighbour with the destination, nil if none
	takes               bool       // it accepts packets from the source
	known, mine, theirs uint64     // changes of the neighbours, of this engine, of to's
}

// neighbour returns the neighbour that packets may go to, nil for none.
func (r *localRoute) neighbour() *neighbour {
	if r.takes {
		return r.to
	}
	return nil
}

// maxLocalRoutes bounds a neighbour's routes, since a pod may send to any address.
const maxLocalRoutes = 4096

// join makes the node a neighbour, under the key that its engine has, until
// leave is called.
func (ns *neighbours) join(engine *wgEngine, device *podnet.Device) (leave func()) {
	n := &neighbour{all: ns, engine: engine, device: device, routes: map[flowEnds]localRoute{}}
	device.Divert(n.receiver)
	return engine.onSelf(func(was, is *key.NodePublic) { ns.rename(n, was, is) })
}

// rename enters a neighbour under another key, or under none.
func (ns *neighbours) rename(n *neighbour, was, is *key.NodePublic) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	next := map[key.NodePublic]*neighbour{}
	if m := ns.byKey.Load(); m != nil {
		next = maps.Clone(*m)
	}
	if was != nil && next[*was] == n {
		delete(next, *was)
	}
	if is != nil {
		next[*is] = n
	}
	ns.byKey.Store(&next)
	ns.changes.Add(1)
}

func (ns *neighbours) find(k key.NodePublic) *neighbour {
	if m := ns.byKey.Load(); m != nil {
		return (*m)[k]
	}
	return nil
}

// receiver returns the device that gets the node's packet, nil if the packet goes by
// WireGuard. It is called for every frame.
func (n *neighbour) receiver(p []byte) *podnet.Device {
	ends, ok := plainEnds(p)
	if !ok {
		return nil
	}
	to := n.route(ends)
	if to == nil || !n.pass(to, p) {
		return nil
	}
	return to.device
}

// plainEnds returns the addresses of a whole TCP or UDP packet without IP options.
func plainEnds(p []byte) (ends flowEnds, ok bool) {
	var proto byte
	switch {
	case len(p) >= 20 && p[0] == 0x45:
		const fragmentBits = 0x3fff // "more fragments", offset
		if int(binary.BigEndian.Uint16(p[2:])) != len(p) || binary.BigEndian.Uint16(p[6:])&fragmentBits != 0 {
			return ends, false
		}
		proto = p[9]
		ends = flowEnds{netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:]))}
	case len(p) >= 40 && p[0]>>4 == 6:
		if int(binary.BigEndian.Uint16(p[4:]))+40 != len(p) {
			return ends, false
		}
		proto = p[6]
		ends = flowEnds{netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:]))}
	}
	return ends, proto == byte(ipproto.TCP) || proto == byte(ipproto.UDP)
}

// route returns the neighbour that packets with these addresses may go to, nil for
// none.
func (n *neighbour) route(ends flowEnds) *neighbour {
	known, mine := n.all.changes.Load(), n.engine.changes.Load()
	r, ok := n.routes[ends]
	if ok && r.known == known && r.mine == mine && (r.to == nil || r.theirs == r.to.engine.changes.Load()) {
		return r.neighbour()
	}
	r = localRoute{known: known, mine: mine, to: n.peerAt(ends.dst)}
	if r.to != nil {
		r.theirs = r.to.engine.changes.Load() // read before the question
		r.takes = n.mayReach(r.to, ends.src)
	}
	if len(n.routes) >= maxLocalRoutes {
		clear(n.routes)
	}
	n.routes[ends] = r
	return r.neighbour()
}

// peerAt returns the neighbour that has the address in this node's own netmap, and that
// its WireGuard would send to. The lookup by address also finds a peer whose key has
// expired (ipn/ipnlocal/resolve.go), for which WireGuard has no configuration
// (net/routemanager).
func (n *neighbour) peerAt(dst netip.Addr) *neighbour {
	k, ok := n.engine.peerAt(dst)
	if !ok || !n.engine.mayComeFrom(k, dst) {
		return nil
	}
	if to := n.all.find(k); to != n {
		return to
	}
	return nil
}

// mayReach reports whether the other node's WireGuard would take a packet with
// this source from this node.
func (n *neighbour) mayReach(to *neighbour, src netip.Addr) bool {
	self := n.engine.self.Load()
	return self != nil && n.all.find(*self) == n &&
		!n.engine.rewrite.Load() && !to.engine.rewrite.Load() &&
		to.engine.mayComeFrom(*self, src)
}

// pass reports whether both filters let the packet through.
func (n *neighbour) pass(to *neighbour, p []byte) bool {
	out, in := n.engine.GetFilter(), to.engine.GetFilter()
	if out == nil || in == nil {
		return false
	}
	q := &n.parsed
	q.Decode(p)
	if q.IPProto == ipproto.UDP && disco.LooksLikeDiscoWrapper(q.Payload()) {
		return false // the nodes themselves check disco packets (net/tstun/wrap.go, isSelfDisco)
	}
	if r, _ := out.RunOut(q, 0); r != filter.Accept {
		return false
	}
	return in.RunIn(q, 0) == filter.Accept
}

// localPeers returns the devices that are nodes of this engine in the same tailnet.
func (n *node) localPeers(devices []tailcfg.StableNodeID) (local []tailcfg.StableNodeID) {
	for _, peer := range n.e.snapshot() {
		id := tailcfg.StableNodeID(peer.snapshot().NodeID)
		if id != "" && peer.profile() == n.profile() && slices.Contains(devices, id) {
			local = append(local, id)
		}
	}
	return local
}
