// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"bytes"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/util/usermetric"
	"tailscale.com/wgengine"

	"tailscale-nri/engine/measure"
)

// Measures returns what is measured of the nodes now. Nothing is kept for it:
// counters of packets are those of the backends, and begin again with them.
func (e *Engine) Measures() measure.Engine {
	m := measure.Engine{Nodes: map[string]int{}}
	for _, s := range []State{Pending, Running, Stopped, Leaving} {
		m.Nodes[string(s)] = 0
	}
	e.tally.into(&m)
	latest := map[[2]string]podAt{} // by namespace and name, which a pod's successor has too
	take := func(s NodeStatus, n *node) {
		m.Nodes[string(s.State)]++
		if s.State != Running && s.State != Pending {
			return // its sandbox has ended
		}
		name := [2]string{s.Namespace, s.Pod}
		if was, twice := latest[name]; !twice || s.AttachedAt.After(was.at) {
			latest[name] = podAt{s.AttachedAt, measure.Pod{Namespace: s.Namespace, Name: s.Pod, Up: s.State == Running}, n}
		}
	}
	for _, n := range e.snapshot() {
		take(n.brief(), n)
	}
	for _, s := range e.refused() {
		take(s, nil)
	}
	m.Pods, m.Unanswered = measureAll(slices.Collect(maps.Values(latest)))
	return m
}

// podAt is a pod that was attached then, as far as it is known without its node,
// and that node, nil if it has none.
type podAt struct {
	at   time.Time
	pod  measure.Pod
	node *node
}

// measurePatience is how long a scrape waits for the answer of one node, which
// takes microseconds, and measureLimit for all.
const (
	measurePatience = time.Second
	measureLimit    = 3 * time.Second
)

// measureAll measures pods one after the other. A node that hangs, in a lock of its
// backend's, is passed over, and left out by later calls until it has answered: no
// more than one goroutine ever waits for it.
func measureAll(rest []podAt) (pods []measure.Pod, unanswered int) {
	pods = make([]measure.Pod, 0, len(rest))
	late, limit := time.NewTimer(measureLimit), time.Now().Add(measureLimit)
	defer late.Stop()
	for len(rest) > 0 {
		var given atomic.Bool // the worker up, for a node that hangs
		answers := make(chan answer, len(rest))
		if left := time.Until(limit); left > 0 {
			go measureEach(rest, answers, &given)
		}
		for len(rest) > 0 && !given.Load() {
			late.Reset(min(measurePatience, time.Until(limit)))
			a := answer{pod: rest[0].pod}
			select {
			case a = <-answers:
			case <-late.C:
				given.Store(true)
			}
			if !a.ok {
				unanswered++
			}
			pods, rest = append(pods, a.pod), rest[1:]
		}
	}
	return pods, unanswered
}

// answer is a pod with what its node has counted, or as it was if that is not ok.
type answer struct {
	pod measure.Pod
	ok  bool
}

// measureEach answers for one pod after the other, until it is given up.
func measureEach(all []podAt, answers chan<- answer, given *atomic.Bool) {
	var read usermetrics
	for _, p := range all {
		a := answer{p.pod, true}
		if p.node != nil {
			if a.ok = p.node.measuring.CompareAndSwap(false, true); a.ok {
				p.node.measure(&a.pod, &read)
				p.node.measuring.Store(false)
			}
		}
		if given.Load() {
			return
		}
		answers <- a // has room for all
	}
}

// brief is snapshot without what is copied or counted for it.
func (n *node) brief() NodeStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.status
}

// measure writes what is measured of the node's pod.
func (n *node) measure(p *measure.Pod, read *usermetrics) {
	n.mu.Lock()
	device, session := n.device, n.session
	n.mu.Unlock()
	if device == nil || session == nil {
		return
	}
	p.Served, p.CutRefusals = true, device.CutRefusals()
	for d, t := range [...]Traffic{measure.In: trafficOf(&device.DirectIn), measure.Out: trafficOf(&device.DirectOut)} {
		p.Traffic[measure.Local][d] = measure.Traffic(t)
	}
	b := session.b
	region := read.into(p, b.sys.UserMetricsRegistry())
	p.Drops = append(p.Drops, measure.Drop{Direction: measure.Out, Reason: measure.Malformed, Packets: device.Dropped.Load()})
	p.Control = b.sys.HealthTracker.Get().GetInPollNetMap()
	if nm := b.NetMapNoPeers(); nm != nil {
		p.KeyExpiry = nm.SelfKeyExpiry()
		if nm.DERPMap != nil && nm.DERPMap.Regions[region] != nil {
			p.HomeDERP = nm.DERPMap.Regions[region].RegionCode
		}
	}
	p.Peers = b.countPeers()
	b.engine.sessions.measure(p, b.engine)
}

// peerCount is how many peers a backend has, as of a change of them.
type peerCount struct {
	change uint64
	n      int
}

// countPeers returns how many peers the backend's netmap has. To count is to copy
// the list, so that is done when it may have changed.
func (b *backend) countPeers() int {
	change := b.engine.changes.Load()
	if c := b.peers.Load(); c != nil && c.change == change {
		return c.n
	}
	n := 0
	if nm := b.NetMapWithPeers(); nm != nil {
		n = len(nm.Peers)
	}
	b.peers.Store(&peerCount{change, n})
	return n
}

// peerSessions are the peers with which WireGuard has a session.
type peerSessions struct {
	mu   sync.Mutex
	live map[key.NodePublic]struct{}
}

// SetPeerSessionStateFunc implements [wgengine.Engine]. The function is called
// under locks of WireGuard's.
func (e *wgEngine) SetPeerSessionStateFunc(fn func(key.NodePublic, wgengine.PeerWireGuardState)) {
	e.Engine.SetPeerSessionStateFunc(func(k key.NodePublic, state wgengine.PeerWireGuardState) {
		e.sessions.note(k, state)
		if fn != nil {
			fn(k, state)
		}
	})
}

func (s *peerSessions) note(k key.NodePublic, state wgengine.PeerWireGuardState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch state {
	case wgengine.PeerWireGuardStateEstablished:
		if s.live == nil {
			s.live = map[key.NodePublic]struct{}{}
		}
		s.live[k] = struct{}{}
	case wgengine.PeerWireGuardStateNone:
		delete(s.live, k)
	}
}

// measure writes how many sessions there are, and when their last handshakes were.
func (s *peerSessions) measure(p *measure.Pod, e wgengine.Engine) {
	s.mu.Lock()
	keys := make([]key.NodePublic, 0, len(s.live))
	for k := range s.live {
		keys = append(keys, k)
	}
	s.mu.Unlock()
	for _, k := range keys {
		peer, ok := e.PeerByKey(k)
		if !ok || peer.LastHandshake().IsZero() {
			continue
		}
		at := peer.LastHandshake()
		p.Sessions++
		if p.Oldest.IsZero() || at.Before(p.Oldest) {
			p.Oldest = at
		}
		if at.After(p.Newest) {
			p.Newest = at
		}
	}
}

// usermetrics reads what tailscale.com counts of a node for its users: the
// metrics of "tailscale metrics", whose names are documented and stable. They are
// there as text alone. It implements [http.ResponseWriter] for that.
type usermetrics struct {
	text   bytes.Buffer
	header http.Header
}

func (u *usermetrics) Header() http.Header {
	if u.header == nil {
		u.header = http.Header{}
	}
	return u.header
}
func (u *usermetrics) WriteHeader(int)                         {}
func (u *usermetrics) Write(p []byte) (int, error)             { return u.text.Write(p) }
func (u *usermetrics) WriteString(s string) (n int, err error) { return u.text.WriteString(s) }

// The metrics that are read (wgengine/magicsock, registerMetrics; util/usermetric,
// initOnce).
const (
	userHomeDERP = "tailscaled_home_derp_region_id"
	userPrefix   = "tailscaled_"
)

var userTraffic = map[string]struct {
	direction measure.Direction
	value     func(*measure.Traffic) *uint64
}{
	"inbound_packets_total":  {measure.In, func(t *measure.Traffic) *uint64 { return &t.Packets }},
	"inbound_bytes_total":    {measure.In, func(t *measure.Traffic) *uint64 { return &t.Bytes }},
	"outbound_packets_total": {measure.Out, func(t *measure.Traffic) *uint64 { return &t.Packets }},
	"outbound_bytes_total":   {measure.Out, func(t *measure.Traffic) *uint64 { return &t.Bytes }},
}

var userDrops = map[string]measure.Direction{
	"inbound_dropped_packets_total":  measure.In,
	"outbound_dropped_packets_total": measure.Out,
}

// userPaths are the values of the label path.
var userPaths = map[string]measure.Path{
	"direct_ipv4": measure.Direct, "direct_ipv6": measure.Direct, "derp": measure.DERP,
	"peer_relay_ipv4": measure.PeerRelay, "peer_relay_ipv6": measure.PeerRelay,
}

// into writes traffic and drops, and returns the home DERP region.
func (u *usermetrics) into(p *measure.Pod, of *usermetric.Registry) (home tailcfg.DERPRegionID) {
	u.text.Reset()
	of.Handler(u, nil) // which does not look at the request (tsweb/varz, ExpvarDoHandler)
	for line := range bytes.Lines(u.text.Bytes()) {
		if line[0] == '#' {
			continue
		}
		head, number, ok := strings.Cut(strings.TrimSpace(string(line)), " ")
		if !ok {
			continue
		}
		if head == userHomeDERP {
			id, _ := strconv.ParseFloat(number, 64)
			home = tailcfg.DERPRegionID(id)
			continue
		}
		name, label, _ := strings.Cut(strings.TrimPrefix(head, userPrefix), "{")
		n, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			continue
		}
		// The only label: path="derp"}, or reason="acl"}.
		_, value, _ := strings.Cut(strings.TrimSuffix(label, `"}`), `="`)
		if t, ok := userTraffic[name]; ok {
			if path, ok := userPaths[value]; ok {
				*t.value(&p.Traffic[path][t.direction]) += n
			}
		} else if d, ok := userDrops[name]; ok {
			p.Drops = append(p.Drops, measure.Drop{Direction: d, Reason: value, Packets: n})
		}
	}
	return home
}
