// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/util/zstdframe"
)

// stream is one netmap stream to one node. Fields are guarded by table.mu but
// for the channels.
type stream struct {
	node       *node
	registered key.NodePublic              // node.registered at the time
	pending    map[tailcfg.NodeID]struct{} // changed since the last message
	sent       map[tailcfg.NodeID]int      // the peer's node.whole when it last went out whole
	filter     []tailcfg.FilterRule        // the node's, as last told; nil until then
	lockHead   string                      // of tailnet lock, as last told
	dns        *tailcfg.DNSConfig          // as last told, nil until it is changed
	debug      *tailcfg.Debug              // to go out with the next message
	wake       chan struct{}               // buffered, one pending wake-up is enough
	ended      chan struct{}
}

func (s *stream) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// end is called once, under table.mu.
func (s *stream) end() {
	select {
	case <-s.ended:
	default:
		close(s.ended)
	}
}

// open subscribes n's new poll to changes, ends its earlier one, and makes n
// online for its peers. All that there is counts as changed.
func (t *table) open(n *node) *stream {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &stream{
		node:       n,
		registered: n.registered,
		pending:    map[tailcfg.NodeID]struct{}{},
		sent:       map[tailcfg.NodeID]int{},
		wake:       make(chan struct{}, 1),
		ended:      make(chan struct{}),
	}
	for id := range t.byID {
		s.pending[id] = struct{}{}
	}
	for other := range t.streams {
		if other.node == n {
			other.end()
		}
	}
	t.streams[s] = struct{}{}
	if t.byID[n.ID] != n {
		s.end() // deleted meanwhile
	}
	n.streams++
	t.changedLocked(n)
	return s
}

// close undoes open.
func (t *table) close(s *stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.streams, s)
	s.node.streams--
	s.node.LastSeen = new(time.Now())
	t.changedLocked(s.node)
}

// drain fills res with all that s has not told yet: the node itself and new
// peers whole, moved ones as patches, gone ones by ID. It reports whether there
// is anything to tell.
func (t *table) drain(s *stream, res *tailcfg.MapResponse) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := range s.pending {
		n := t.seenLocked(s.node, id)
		was, known := s.sent[id]
		switch {
		case n == nil && known:
			res.PeersRemoved = append(res.PeersRemoved, id)
			delete(s.sent, id)
		case n == nil:
		case n == s.node:
			// Only if it changed for itself: its own endpoints are not news to it.
			if !known || was != n.whole {
				res.Node = n.share()
				s.sent[id] = n.whole
			}
		case known && was == n.whole && len(n.Endpoints) > 0:
			res.PeersChangedPatch = append(res.PeersChangedPatch, n.patch())
		default:
			peer := n.share()
			t.applyViewsLocked(peer, s.node, n)
			res.PeersChanged = append(res.PeersChanged, peer)
			s.sent[id] = n.whole
		}
	}
	clear(s.pending)
	more := t.drainPolicyLocked(s, res)
	res.Debug, s.debug = s.debug, nil
	slices.SortFunc(res.PeersChanged, func(a, b *tailcfg.Node) int { return cmp.Compare(a.ID, b.ID) })
	return more || res.Node != nil || res.Debug != nil || len(res.PeersChanged)+len(res.PeersChangedPatch)+len(res.PeersRemoved) > 0
}

// seenLocked is the node with an ID, nil if there is none or if n is not to
// know of it.
func (t *table) seenLocked(n *node, id tailcfg.NodeID) *node {
	if t.apart && n.ID != id || t.views[sight{n.ID, id}].Hidden {
		return nil
	}
	return t.byID[id]
}

// drainPolicyLocked adds to res the node's packet filter and the head of
// tailnet lock if they are not what s last told, and reports whether it did.
func (t *table) drainPolicyLocked(s *stream, res *tailcfg.MapResponse) (more bool) {
	if rules := t.filterLocked(s.node); s.filter == nil || !reflect.DeepEqual(rules, s.filter) {
		// "*": whatever the node had goes. An empty PacketFilter, without the
		// "s", would not survive being written as JSON.
		res.PacketFilter = nil
		res.PacketFilters = map[string][]tailcfg.FilterRule{"*": nil, "base": rules}
		s.filter = append([]tailcfg.FilterRule{}, rules...)
		more = true
	}
	if s.dns != t.dns {
		s.dns = t.dns
		res.DNSConfig = t.dns.Clone()
		more = true
	}
	if t.lock != nil && s.lockHead != t.lock.head {
		s.lockHead = t.lock.head
		res.TKAInfo = &tailcfg.TKAInfo{Head: t.lock.head}
		more = true
	}
	return more
}

// share is a copy of n to send.
func (n *node) share() *tailcfg.Node {
	c := n.Node.Clone()
	c.Online = new(n.streams > 0)
	return c
}

// patch is what changes often about a peer.
func (n *node) patch() *tailcfg.PeerChange {
	p := &tailcfg.PeerChange{
		NodeID:     n.ID,
		DERPRegion: n.HomeDERP,
		Endpoints:  slices.Clone(n.Endpoints),
		Online:     new(n.streams > 0),
		LastSeen:   n.LastSeen,
	}
	if !n.DiscoKey.IsZero() {
		p.DiscoKey = new(n.DiscoKey)
	}
	return p
}

// serveStream sends n its netmap, and then each change, until the poll ends.
func (s *Server) serveStream(ctx context.Context, w http.ResponseWriter, n *node, req *tailcfg.MapRequest) error {
	st := s.nodes.open(n)
	defer s.nodes.close(st)

	res, err := s.registrar.frame(st.registered)
	if err != nil {
		return err
	}
	s.nodes.drain(st, res)
	res.Peers, res.PeersChanged = res.PeersChanged, nil
	for {
		res.ControlTime = new(time.Now())
		if err := s.outage.wait(ctx); err != nil {
			return nil
		}
		if err := writeMessage(w, req.Compress != "", res); err != nil {
			return nil // the node has gone
		}
		if res = s.nextMessage(ctx, st); res == nil || !req.Stream {
			return nil
		}
	}
}

// nextMessage waits until there is something to tell; nil means that the poll
// is over.
func (s *Server) nextMessage(ctx context.Context, st *stream) *tailcfg.MapResponse {
	// As production: a node gives a poll up after 2 min of silence.
	keepAlive := time.NewTimer(50*time.Second + rand.N(8*time.Second))
	defer keepAlive.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-st.ended:
			return nil
		case <-keepAlive.C:
			return &tailcfg.MapResponse{KeepAlive: true}
		case <-st.wake:
			res := new(tailcfg.MapResponse)
			if s.nodes.drain(st, res) {
				return res
			}
		}
	}
}

// writeMessage frames one netmap message: its length, 4 bytes little endian,
// then JSON, in a zstd frame if the node asked for it.
func writeMessage(w http.ResponseWriter, compress bool, res *tailcfg.MapResponse) error {
	b, err := json.Marshal(res)
	if err != nil {
		return err
	}
	if compress {
		b = zstdframe.AppendEncode(nil, b, zstdframe.FastestCompression)
	}
	msg := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(b)), uint32(len(b)))
	if _, err := w.Write(append(msg, b...)); err != nil {
		return err
	}
	return http.NewResponseController(w).Flush()
}
