// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"bytes"
	"context"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
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
	m := measuring{Engine: measure.Engine{Nodes: map[string]int{}}}
	for _, s := range []State{Pending, Running, Stopped, Leaving} {
		m.Nodes[string(s)] = 0
	}
	e.tally.into(&m.Engine)
	latest := map[[2]string]podAt{} // by namespace and name; a pod and its successor have the same
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
	m.measure(slices.Collect(maps.Values(latest)))
	return m.Engine
}

// podAt is a pod that was attached then, with what is known of it without its node, and
// that node, nil if it has none.
type podAt struct {
	at   time.Time
	pod  measure.Pod
	node *node
}

const (
	// lockPatience is how long a scrape waits for the locks of all backends together.
	// While peers come and go, and processors are scarce, a backend may hold its locks
	// for a second; in a tailnet of many pods one always does.
	lockPatience = 20 * time.Millisecond
	// hangs is how long a backend may hold its locks before it counts as hanging.
	hangs = 5 * time.Second
)

// measure measures the pods, and counts those whose backend hangs. All backends are
// asked at once for values that need their locks. For a backend that does not answer in
// time, the values of an earlier scrape are used.
func (m *measuring) measure(pods []podAt) {
	m.Pods = make([]measure.Pod, len(pods))
	type asked struct {
		pod    *measure.Pod
		b      *backend
		region tailcfg.DERPRegionID
		by     *question
	}
	var all []asked
	for i, p := range pods {
		a := asked{pod: &m.Pods[i]}
		*a.pod = p.pod
		if p.node == nil {
			continue
		}
		a.pod.HasNode, a.pod.Written = true, p.node.written.all()
		if a.b, a.region = p.node.measure(a.pod, &m.read); a.b != nil {
			a.by = a.b.ask()
			all = append(all, a)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), lockPatience)
	defer cancel()
	for _, a := range all {
		select {
		case <-a.by.done:
		case <-ctx.Done():
			if time.Since(a.by.at) > hangs {
				m.Unanswered++
			}
		}
		if f := a.b.facts.Load(); f != nil {
			f.into(a.pod, a.region)
		}
	}
}

// measuring is the state of one scrape.
type measuring struct {
	measure.Engine
	read usermetrics
}

// question is a request to a backend and its time; done is closed when it was answered.
type question struct {
	at   time.Time
	done chan struct{}
}

// ask has the backend's facts read, by only one goroutine at a time.
func (b *backend) ask() *question {
	q := &question{time.Now(), make(chan struct{})}
	if !b.asked.CompareAndSwap(nil, q) {
		if earlier := b.asked.Load(); earlier != nil {
			return earlier
		}
		close(q.done) // answered just now
		return q
	}
	go func() {
		b.facts.Store(b.readFacts())
		b.asked.Store(nil)
		close(q.done)
	}()
	return q
}

// facts are the values that need a backend's locks.
type facts struct {
	change         uint64 // the number of changes of its peers when they were counted
	peers          int
	sessions       int
	oldest, newest time.Time
	keyExpiry      time.Time
	derp           *tailcfg.DERPMap
}

func (b *backend) readFacts() *facts {
	f := &facts{change: b.engine.changes.Load()}
	if nm := b.NetMapNoPeers(); nm != nil {
		f.keyExpiry, f.derp = nm.SelfKeyExpiry(), nm.DERPMap
	}
	// Counting the peers copies their list, so it is done only when the list may have
	// changed.
	if was := b.facts.Load(); was != nil && was.change == f.change {
		f.peers = was.peers
	} else if nm := b.NetMapWithPeers(); nm != nil {
		f.peers = len(nm.Peers)
	}
	b.engine.sessions.read(f, b.engine)
	return f
}

func (f *facts) into(p *measure.Pod, region tailcfg.DERPRegionID) {
	p.Answered, p.Peers, p.Sessions = true, f.peers, f.sessions
	p.Oldest, p.Newest, p.KeyExpiry = f.oldest, f.newest, f.keyExpiry
	if f.derp != nil && f.derp.Regions[region] != nil {
		p.HomeDERP = f.derp.Regions[region].RegionCode
	}
}

// brief is snapshot without the fields that have to be copied or counted.
func (p *published) brief() NodeStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// measure writes what needs no lock of the backend. It returns the backend, nil if the
// node has none, and its home DERP region.
func (n *node) measure(p *measure.Pod, read *usermetrics) (b *backend, region tailcfg.DERPRegionID) {
	session, device := n.serving.current()
	if device == nil || session == nil {
		return nil, 0
	}
	p.Served, p.CutRefusals = true, device.CutRefusals()
	for d, t := range [...]Traffic{measure.In: trafficOf(&device.DirectIn), measure.Out: trafficOf(&device.DirectOut)} {
		p.Traffic[measure.Local][d] = measure.Traffic(t)
	}
	b = session.b
	region = read.into(p, b.sys.UserMetricsRegistry())
	p.Drops = append(p.Drops, measure.Drop{Direction: measure.Out, Reason: measure.Malformed, Packets: device.Dropped.Load()})
	p.Control = b.sys.HealthTracker.Get().GetInPollNetMap()
	return b, region
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

// keys returns the keys of the peers.
func (s *peerSessions) keys() []key.NodePublic {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.live))
}

// read writes how many sessions exist, and when their last handshakes were.
func (s *peerSessions) read(f *facts, e wgengine.Engine) {
	for _, k := range s.keys() {
		peer, ok := e.PeerByKey(k)
		if !ok || peer.LastHandshake().IsZero() {
			continue
		}
		at := peer.LastHandshake()
		f.sessions++
		if f.oldest.IsZero() || at.Before(f.oldest) {
			f.oldest = at
		}
		if at.After(f.newest) {
			f.newest = at
		}
	}
}

// usermetrics reads what tailscale.com counts of a node for its users: the metrics of
// "tailscale metrics", whose names are documented and stable. They exist only as text,
// so it implements [http.ResponseWriter].
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
	of.Handler(u, nil) // the handler does not read the request (tsweb/varz, ExpvarDoHandler)
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
