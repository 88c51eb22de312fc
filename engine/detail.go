// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"tailscale-nri/engine/measure"
)

// activeFor is how long after a packet tailscale.com keeps the way to a peer open and
// looks for better ones (wgengine/magicsock, sessionActiveTimeout). After that the way
// of the next packet is not known.
const activeFor = 45 * time.Second

// Detail describes a node at one moment.
type Detail struct {
	NodeStatus
	Measured    measure.Pod
	LoginServer string // of its tailnet; "" if the configuration no longer has the tailnet

	// Unanswered is whether its backend hangs: fields that need the backend's locks are
	// missing.
	Unanswered bool

	// Active is whether the pod has sent a packet to a peer within the last 45 s, or
	// exchanged one with another pod of this host. If not, the fields below are zero.
	Active bool
	// Path is the way of the last of these packets. It is Direct once the peer has
	// answered on that way; until then packets go over DERP as well.
	Path     measure.Path
	PathDERP string // code of the region, if the path is DERP

	Sessions []PeerSession // ordered by last packet, latest first

	local time.Time // time of the last packet to or from another pod of this host, if Active
}

// PeerSession is a peer with which WireGuard has a session.
type PeerSession struct {
	Name    string     // in MagicDNS, without the final dot; "" if the netmap no longer has the peer
	Address netip.Addr // its first one

	Active   bool         // a packet was sent to it within the last 45 s
	Path     measure.Path // of the next packet to it, if it is Active
	Endpoint string       // host:port, if Path is Direct or PeerRelay
	DERP     string       // code of the region, if the path is DERP

	LastWrite     time.Time // time of the last packet to it, including WireGuard's own
	LastHandshake time.Time
	// BytesIn and BytesOut are WireGuard's, with its headers, since it last created the
	// peer.
	BytesIn, BytesOut uint64
}

const (
	// viewPatience is how long Details waits for the locks of all backends together.
	viewPatience = 2 * time.Second
	// asidePatience is how long each is waited for before the next is asked as well. It
	// is far above the time of a backend whose locks are free, so that few are asked at
	// once.
	asidePatience = 5 * time.Millisecond
)

// Details describes the nodes, by namespace and name. Nothing is kept for it. It takes
// longer than Status: where a node has a session, tailscale.com goes through all peers
// of that node. A backend that hangs does not hide the others.
func (e *Engine) Details() (out []Detail) {
	for _, s := range e.refused() {
		out = append(out, Detail{NodeStatus: s})
	}
	nodes := e.snapshot()
	first := len(out)
	out = append(out, make([]Detail, len(nodes))...)
	ctx, cancel := context.WithTimeout(context.Background(), viewPatience)
	defer cancel()
	var read usermetrics
	var late []func()
	for i, n := range nodes {
		d := &out[first+i]
		b, region := n.detail(d, &read)
		if b == nil {
			continue
		}
		v := b.view()
		select {
		case <-v.done:
			d.add(v, region)
			continue
		case <-time.After(asidePatience):
		case <-ctx.Done():
		}
		late = append(late, func() {
			select {
			case <-v.done:
				d.add(v, region)
			case <-ctx.Done():
				d.Unanswered = true
			}
		})
	}
	for _, wait := range late {
		wait()
	}
	slices.SortFunc(out, func(a, b Detail) int { return byPod(&a.NodeStatus, &b.NodeStatus) })
	return out
}

// byPod orders nodes by namespace, name and UID.
func byPod(a, b *NodeStatus) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.UID, b.UID))
}

// detail writes what needs no lock of the backend. It returns the backend, nil if the
// node has none, and its home DERP region.
func (n *node) detail(d *Detail, read *usermetrics) (b *backend, region tailcfg.DERPRegionID) {
	*d = Detail{NodeStatus: n.snapshot()}
	d.Measured = measure.Pod{Namespace: d.Namespace, Name: d.Pod, Up: d.State == Running}
	if tn, ok := n.e.tailnets[d.Features.Profile]; ok {
		d.LoginServer = tn.ControlURL()
	}
	if _, device := n.serving.current(); device != nil {
		if local := device.LastDirect(); time.Since(local) < activeFor {
			d.Active, d.Path, d.local = true, measure.Local, local
		}
	}
	return n.measure(&d.Measured, read)
}

// add writes the backend's answer.
func (d *Detail) add(v *view, region tailcfg.DERPRegionID) {
	v.facts.into(&d.Measured, region)
	d.Sessions = v.sessions
	if len(d.Sessions) == 0 {
		return
	}
	if p := &d.Sessions[0]; p.Active && !d.local.After(p.LastWrite) {
		d.Active, d.Path, d.PathDERP = true, p.Path, p.DERP
	}
}

// view has the values that need a backend's locks, once done is closed.
type view struct {
	done     chan struct{}
	facts    *facts
	sessions []PeerSession
}

// view has the backend read, by only one goroutine at a time.
func (b *backend) view() *view {
	v := &view{done: make(chan struct{})}
	for !b.viewed.CompareAndSwap(nil, v) {
		if earlier := b.viewed.Load(); earlier != nil {
			return earlier
		}
	}
	go func() {
		v.facts, v.sessions = b.readFacts(), b.peerSessions()
		b.viewed.Store(nil)
		close(v.done)
	}()
	return v
}

// peerSessions returns the peers with which WireGuard has a session, the one that was
// last sent to first.
func (b *backend) peerSessions() (sessions []PeerSession) {
	keys := b.engine.sessions.keys()
	if len(keys) == 0 {
		return nil
	}
	sb := &ipnstate.StatusBuilder{WantPeers: true}
	b.sys.MagicSock.Get().UpdateStatus(sb)
	paths := sb.Status().Peer
	for _, k := range keys {
		if s, ok := b.peerSession(k, paths[k]); ok {
			sessions = append(sessions, s)
		}
	}
	slices.SortFunc(sessions, func(a, b PeerSession) int {
		return cmp.Or(b.LastWrite.Compare(a.LastWrite), cmp.Compare(a.Name, b.Name))
	})
	return sessions
}

// peerSession returns the session with one peer, whose way may be nil; ok is false if
// it has none.
func (b *backend) peerSession(k key.NodePublic, way *ipnstate.PeerStatus) (s PeerSession, ok bool) {
	peer, ok := b.engine.PeerByKey(k)
	if !ok || peer.LastHandshake().IsZero() {
		return s, false
	}
	s.LastHandshake, s.BytesIn, s.BytesOut = peer.LastHandshake(), peer.RxBytes(), peer.TxBytes()
	if node, _, known := b.WhoIsNodeKey(k); known {
		s.Name = strings.TrimSuffix(node.Name(), ".")
		if all := node.Addresses(); all.Len() > 0 {
			s.Address = all.At(0).Addr()
		}
	}
	if way == nil {
		return s, true
	}
	s.LastWrite, s.Active = way.LastWrite, way.Active
	switch {
	case !s.Active:
	case way.CurAddr != "":
		s.Path, s.Endpoint = measure.Direct, way.CurAddr
	case way.PeerRelay != "":
		s.Path, s.Endpoint = measure.PeerRelay, way.PeerRelay
	default:
		s.Path, s.DERP = measure.DERP, way.Relay
	}
	return s, true
}
