// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/tailscale/wireguard-go/tun"
	"tailscale.com/control/controlclient"
	"tailscale.com/feature/buildfeatures"
	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnlocal"
	"tailscale.com/net/dns"
	"tailscale.com/net/netmon"
	"tailscale.com/net/tsdial"
	"tailscale.com/tsd"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
	"tailscale.com/types/preftype"
	"tailscale.com/wgengine"
	"tailscale.com/wgengine/router"

	"tailscale-nri/engine/internal/hostnet"
	"tailscale-nri/engine/internal/podnet"
	"tailscale-nri/engine/internal/podstate"
	"tailscale-nri/engine/measure"
)

// backend is a LocalBackend with everything below it. It uses this process's own
// network only for UDP and TCP sockets.
type backend struct {
	*ipnlocal.LocalBackend
	sys     *tsd.System
	engine  *wgEngine
	closers closers
	control connections              // to the control plane
	facts   atomic.Pointer[facts]    // those of the last scrape that got an answer
	asked   atomic.Pointer[question] // the open question of a scrape, nil if none
	viewed  atomic.Pointer[view]     // the open question of Details, nil if none
}

// podEnd is a backend's part in its pod. Without it, the node has an identity but no
// packets.
type podEnd struct {
	device tun.Device
	router router.Router
	// join makes the node a neighbour of the host's others, before its first packet; it
	// may be nil.
	join func(*wgEngine) (leave func())
	// dns is given the tailnet's DNS configuration, and returns the one for the
	// backend's resolver; it may be nil.
	dns func(*dns.Config) *dns.Config
}

// openSession opens the link's device, and a backend on it that is not started. begun is
// the link, if that is still being completed.
func (n *node) openSession(r record, link *podnet.Link, begun *begunLink, registering bool) (*session, error) {
	device, err := n.openDevice(link)
	if err != nil {
		return nil, err
	}
	s := newSession(n, device, n.localPeers(r.Recent))
	s.askForDNS(r.Pod.Features.DNS)
	s.registering = registering
	s.tagsDue, s.features = n.tagsDue(), r.Pod.Features
	s.b, err = within(n.e.cfg.AttachTimeout, "opening the backend", func() (*backend, error) {
		return n.openBackend(r, s.podEnd(link, begun), bridge(n.log(), n.chatter, s.observe))
	}, (*backend).close)
	return s, err
}

// openBackend builds a backend for the record. It takes over the parts of pod. The
// backend is not started.
func (n *node) openBackend(r record, pod podEnd, logf logger.Logf) (_ *backend, err error) {
	b := &backend{sys: tsd.NewSystem()}
	defer func() {
		if err != nil {
			b.closers.close()
		}
	}()
	if pod.device != nil {
		b.closers.push(func() { pod.device.Close() })
	}
	dialer, changes := n.openDialer(b, logf)
	if pod.router != nil {
		pod.router = steppedRouter{pod.router, n.e}
	}
	engine, err := b.openEngine(r, n.e.host.Monitor, dialer, pod, logf)
	if err != nil {
		return nil, err
	}
	if pod.join != nil {
		b.closers.push(pod.join(b.engine))
	}
	b.sys.HealthTracker.Get().SetMetricsRegistry(b.sys.UserMetricsRegistry())
	state, err := n.openState()
	if err != nil {
		engine.Close()
		return nil, err
	}
	b.sys.Set(state)
	b.sys.Tun.Get().Start()

	b.LocalBackend, err = ipnlocal.NewLocalBackend(logf, r.LogID.Public(), b.sys, controlclient.LoginDefault)
	if err != nil {
		engine.Close()
		return nil, fmt.Errorf("creating the backend: %w", err)
	}
	// Shutdown closes the engine, and the engine its router and device.
	b.closers.push(b.Shutdown)
	changes.Ready()
	b.SetVarRoot(n.dir)
	if err := n.lendNetmap(b.CurrentProfile().ID(), b.NodeKey()); err != nil {
		n.log().Warn("starting without the last netmap", "err", err)
	}
	if told := n.e.cfg.onBackend; told != nil {
		told(n.uid, b)
	}
	return b, nil
}

// openDialer opens the backend's dialer, and has changes of the host's network
// published on its bus.
func (n *node) openDialer(b *backend, logf logger.Logf) (*tsdial.Dialer, *hostnet.Follower) {
	bus := b.sys.Bus.Get()
	b.closers.push(bus.Close)
	changes := n.e.host.Follow(bus)
	b.closers.push(changes.Stop)
	dialer := n.controlDialer(n.e.host.Monitor, logf, &b.control)
	dialer.SetBus(bus)
	b.closers.push(func() { dialer.Close() })
	n.dns.setDials(dialer)
	return dialer, changes
}

// openEngine creates the WireGuard engine.
func (b *backend) openEngine(r record, monitor *netmon.Monitor, dialer *tsdial.Dialer,
	pod podEnd, logf logger.Logf,
) (wgengine.Engine, error) {
	engine, err := wgengine.NewUserspaceEngine(logf, wgengine.Config{
		EventBus:      b.sys.Bus.Get(),
		NetMon:        monitor,
		Dialer:        dialer,
		Tun:           pod.device,
		Router:        pod.router,
		ListenPort:    r.Port,
		ForceDiscoKey: r.DiscoPrivate(),
		SetSubsystem:  b.sys.Set,
		ControlKnobs:  b.sys.ControlKnobs(),
		HealthTracker: b.sys.HealthTracker.Get(),
		Metrics:       b.sys.UserMetricsRegistry(),
	})
	if err != nil {
		return nil, fmt.Errorf("creating the WireGuard engine: %w", err)
	}
	b.engine = &wgEngine{Engine: engine, configureDNS: pod.dns}
	b.sys.Set(wgengine.Engine(b.engine))
	return b.engine, nil
}

// close ends the backend. The device in the tailnet, the link and the files on disk
// stay.
func (b *backend) close() { b.closers.close() }

// start brings the backend up, logging in with authKey unless that is "". With relogin
// it logs in with a new node key, since the tailnet has thrown the node out.
func (b *backend) start(p *ipn.Prefs, authKey string, relogin bool) error {
	if err := b.Start(ipn.Options{AuthKey: authKey, UpdatePrefs: p}); err != nil {
		return fmt.Errorf("starting the backend: %w", err)
	}
	if !relogin {
		return nil
	}
	// "Interactive" is the backend's word for "with a new node key": with an auth key
	// it asks nothing.
	if err := b.StartLoginInteractive(context.Background()); err != nil {
		return fmt.Errorf("logging in: %w", err)
	}
	return nil
}

// prefs returns the preferences of the node. Those that are not set here or in
// Features.prefs are off: no firewall, no Serve, no SSH, no updates.
func (n *node) prefs(pod Pod) *ipn.Prefs {
	p := ipn.NewPrefs()
	p.ControlURL = n.tailnet().ControlURL()
	p.Hostname = pod.Hostname
	p.AdvertiseTags = n.requestedTags(pod)
	p.WantRunning = true
	p.NetfilterMode = preftype.NetfilterOff
	setFeaturePrefs(p, &pod.Features)
	p.AutoUpdate.Check = false
	return p
}

// openState opens the node's keys and preferences, and makes them for a new
// node.
func (n *node) openState() (ipn.StateStore, error) {
	state, err := podstate.OpenStore(n.statePath(), func(write func() error) error { return n.e.take(stepState, write) },
		n.written.to(measure.StateFile))
	if err != nil {
		return nil, fmt.Errorf("opening the node's state %s: %w", n.statePath(), err)
	}
	if err := podstate.EnsureNodeKey(state, n.lockKey); err != nil {
		return nil, fmt.Errorf("preparing the node's state %s: %w", n.statePath(), err)
	}
	return state, nil
}

// lockKey returns the node's tailnet lock key. Where the tailnet knows such marks, the
// key marks its device as ours.
func (n *node) lockKey(machine key.MachinePublic) key.NLPrivate {
	if api := n.tailnet().api; api != nil {
		if lock, ok := api.LockKey(machine, n.record().Pod.ChosenName); ok {
			return lock
		}
	}
	return key.NewNLPrivate()
}

// closers is the one undo stack of a constructor: it pushes as it opens, and
// failure and normal close both run the stack, last in, first out.
type closers []func()

func (c *closers) push(f func()) { *c = append(*c, f) }

func (c *closers) close() {
	for i := len(*c) - 1; i >= 0; i-- {
		(*c)[i]()
	}
	*c = nil
}

// checkFeatures refuses a binary that holds code which would give a peer this
// process's namespaces instead of the pod's. Serve's backends dial 127.0.0.1
// where the daemon runs (ipn/ipnlocal/serve.go), SSH starts its shell there
// (ssh/tailssh), and the PeerAPI listens there. What is not in the binary
// cannot be switched on by a preference, a state file or the control plane.
func checkFeatures() error {
	if buildfeatures.HasServe || buildfeatures.HasSSH || buildfeatures.HasPeerAPIServer || buildfeatures.HasC2N {
		return errors.New("built with Tailscale's Serve, SSH, PeerAPI server or C2N, " +
			"which would act in the node's namespaces instead of the pod's: build with the tags that make tags prints")
	}
	if buildfeatures.HasPortMapper {
		return errors.New("built with Tailscale's port mapper, of which one process cannot have two: " +
			"build with the tags that make tags prints")
	}
	return nil
}
