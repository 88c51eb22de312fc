// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"net/netip"
	"time"

	"tailscale.com/ipn"
	"tailscale.com/tailcfg"

	"tailscale-nri/engine/internal/podnet"
)

// session is one run of a node's backend: what it waits for, and what the backend reports.
type session struct {
	n      *node
	b      *backend
	device *podnet.Device
	held   *heldDevice
	local  []tailcfg.StableNodeID // that the pod's packets are held back for

	features    Features
	routing     routing
	tagsDue     []string // that the node must have been granted before it has an address
	registering bool     // an auth key is in use, and which device it made is not known yet

	// What the backend's own goroutines report. Each is a channel of one:
	// the latest counts.
	addrs     chan []netip.Addr
	notify    chan *ipn.Notify
	reachable chan struct{}
	thrown    chan struct{} // out of the tailnet

	// For a workload's identity; nil for any other node.
	identityDue chan struct{}
	taken       chan error

	reach  reach
	watch  watch
	expiry expiry
	dns    *sessionDNS // nil for a pod that did not ask for it

	// What loop knows.
	p            progress
	netmap       *netmapKeeper
	recent       recentPeers
	ending       end
	watchdog     <-chan time.Time
	rehandshaken bool // with its peers, once the node was up
}

// newSession returns the session of a node that, if it had sessions before,
// had them with these nodes of this engine.
func newSession(n *node, device *podnet.Device, local []tailcfg.StableNodeID) *session {
	return &session{
		n:         n,
		netmap:    newNetmapKeeper(n),
		recent:    newRecentPeers(),
		watch:     newWatch(&n.e.cfg),
		device:    device,
		local:     local,
		held:      newHeldDevice(device, len(local) > 0 && n.e.cfg.NoLocalDelivery),
		addrs:     make(chan []netip.Addr, 1),
		notify:    make(chan *ipn.Notify, 64),
		reachable: make(chan struct{}, 1),
		thrown:    make(chan struct{}, 1),
	}
}

// login is how a session's node logs in.
type login struct {
	authKey string // "" for a node that is known
	again   bool   // with a new node key
}

// run starts the session's backend and keeps the node up, until ctx is done or something
// is wrong; then it closes all that is the session's. It calls started once the backend
// has what it starts from.
func (s *session) run(ctx context.Context, r record, l login, started func()) error {
	n := s.n
	defer n.closeBackend(s.b)
	n.serving.setSession(s)
	defer n.serving.setSession(nil)
	defer s.expiry.stop()
	n.keepPort(r, s.b.sys.MagicSock.Get().LocalPort())

	ctx, stop := context.WithCancel(ctx) // also ends rehandshakes
	defer stop()
	defer s.startWatching()()
	defer s.startDNS()()
	defer s.keepIdentity(ctx)()
	if _, err := within(n.e.cfg.AttachTimeout, "starting the backend", func() (struct{}, error) {
		p := n.prefs(r.Pod)
		s.keepExit(p)
		return struct{}{}, s.b.start(p, l.authKey, l.again)
	}, func(struct{}) {}); err != nil {
		return err
	}
	n.reclaimNetmap()
	started()
	n.serving.hasReturned()
	defer func() {
		s.netmap.flush(s.b.LocalBackend)
		s.pruneRecent()
	}()
	return s.loop(ctx, r.Recent)
}

// podEnd returns the backend's device and router in the pod. begun is the link, if that
// is still being completed.
func (s *session) podEnd(link *podnet.Link, begun *begunLink) podEnd {
	guarded := &s.n.serving.guarded
	r := s.n.newRouter(link, &s.features, guarded.currentFence(), s.noteAddresses)
	guarded.setRouter(r)
	p := podEnd{device: s.held, router: patientRouter{taggedRouter{guardedRouter{r, s.n}, s}, begun}}
	if e := s.n.e; !e.cfg.NoLocalDelivery {
		p.join = func(engine *wgEngine) func() { return e.neighbours.join(engine, s.device) }
	}
	if s.dns != nil {
		p.dns = s.dns.configure
	}
	return p
}

// noteAddresses is told by the router what ts0 has.
func (s *session) noteAddresses(addrs []netip.Addr) {
	select {
	case <-s.addrs:
	default:
	}
	if len(addrs) > 0 {
		s.n.way.passAddressed()
	}
	s.addrs <- addrs
}

// observe reads the backend's log for the one fact that it reports nowhere else: that
// a peer can reach this node.
func (s *session) observe(format string, args []any) {
	if s.expiry.observe(format, args) {
		s.throwOut()
	}
	if err := failedRequest(format, args); err != nil {
		s.reach.noteFailure(err)
		if thrownOut(format, args) {
			s.throwOut()
		}
	}
	if s.reach.observe(format, args, time.Now()) {
		s.setReachable()
	}
}

// setReachable notes that a peer can reach this node.
func (s *session) setReachable() {
	select {
	case s.reachable <- struct{}{}:
	default:
	}
}

// startWatching passes the backend's notifications on until the function that it returns
// is called.
func (s *session) startWatching() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.watchBackend(ctx)
	}()
	return func() { cancel(); <-done }
}

// watchBackend passes the backend's notifications on until ctx is done.
func (s *session) watchBackend(ctx context.Context) {
	mask := ipn.NotifyInitialState | ipn.NotifyPeerWireGuardState | ipn.NotifyPeerChanges | ipn.NotifyPeerPatches
	s.b.WatchNotifications(ctx, mask, nil, func(n *ipn.Notify) bool {
		select {
		case s.notify <- n:
			return true
		case <-ctx.Done():
			return false
		}
	})
}
