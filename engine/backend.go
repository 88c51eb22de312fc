// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/tailscale/wireguard-go/tun"
	"tailscale.com/control/controlclient"
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

	"tailscale-nri/engine/internal/podnet"
)

// backend is a LocalBackend with all that it stands on. Nothing of it touches
// this process's own network but UDP and TCP sockets.
type backend struct {
	*ipnlocal.LocalBackend
	sys     *tsd.System
	engine  *wgEngine
	closers closers
	control connections              // to the control plane
	facts   atomic.Pointer[facts]    // of the latest scrape that got them
	asked   atomic.Pointer[question] // by a scrape, nil if it has answered
	viewed  atomic.Pointer[view]     // by Details, nil if it has answered
}

// podEnd is what a backend has in its pod. Without it, the node has an identity
// but no packets.
type podEnd struct {
	device tun.Device
	router router.Router
	// join makes the node a neighbour of the host's others, before it has seen a
	// packet; nil leaves it out.
	join func(*wgEngine) (leave func())
	// dns is told of the tailnet's DNS configuration, and returns what the backend's
	// resolver is to have of it; nil leaves it out.
	dns func(*dns.Config) *dns.Config
}

// openSession opens the link's device, and a backend on it that is not started.
func (n *node) openSession(r record, link *podnet.Link, registering bool) (*session, error) {
	device, err := n.openDevice(link)
	if err != nil {
		return nil, err
	}
	s := newSession(n, device, n.localPeers(r.Recent))
	s.askForDNS(r.Pod.Features.DNS)
	s.registering = registering
	s.tagsDue, s.features = n.tagsDue(), r.Pod.Features
	s.b, err = within(n.e.cfg.AttachTimeout, "opening the backend", func() (*backend, error) {
		return n.openBackend(r, s.podEnd(link), bridge(n.log(), n.chatter, s.observe))
	}, (*backend).close)
	return s, err
}

// openBackend wires a backend for the record. It takes over what is in pod. The
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
	monitor, dialer, err := n.openDialer(b, logf)
	if err != nil {
		return nil, err
	}
	if pod.router != nil {
		pod.router = steppedRouter{pod.router, n.e}
	}
	engine, err := b.openEngine(r, monitor, dialer, pod, logf)
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
	b.SetVarRoot(n.dir)
	if err := n.lendNetmap(b.CurrentProfile().ID(), b.NodeKey()); err != nil {
		n.log().Warn("starting without the last netmap", "err", err)
	}
	if told := n.e.cfg.onBackend; told != nil {
		told(n.uid, b)
	}
	return b, nil
}

// openDialer opens what the backend reaches others with, and hears of this machine's
// network by.
func (n *node) openDialer(b *backend, logf logger.Logf) (*netmon.Monitor, *tsdial.Dialer, error) {
	bus := b.sys.Bus.Get()
	b.closers.push(bus.Close)
	monitor, err := netmon.New(bus, logf)
	if err != nil {
		return nil, nil, fmt.Errorf("watching this machine's network: %w", err)
	}
	b.closers.push(func() { monitor.Close() })
	dialer := n.controlDialer(monitor, logf, &b.control)
	dialer.SetBus(bus)
	b.closers.push(func() { dialer.Close() })
	n.dns.setDials(dialer)
	return monitor, dialer, nil
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
		ForceDiscoKey: r.discoKey(),
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

// close ends the backend. The device in the tailnet, the link and what is on
// disk stay.
func (b *backend) close() { b.closers.close() }

// start brings the backend up, logging in with authKey unless that is "". A
// node that was thrown out of its tailnet logs in again, with a new node key.
func (b *backend) start(p *ipn.Prefs, authKey string, relogin bool) error {
	if err := b.Start(ipn.Options{AuthKey: authKey, UpdatePrefs: p}); err != nil {
		return fmt.Errorf("starting the backend: %w", err)
	}
	if !relogin {
		return nil
	}
	// "Interactive" is the backend's word for "with a new node key": with an
	// auth key nobody is asked anything.
	if err := b.StartLoginInteractive(context.Background()); err != nil {
		return fmt.Errorf("logging in: %w", err)
	}
	return nil
}

// prefs are the preferences of the node. What is not named, here or in
// Features.prefs, is off: no firewall, no Serve, no SSH, no updates.
func (n *node) prefs(pod Pod) *ipn.Prefs {
	p := ipn.NewPrefs()
	p.ControlURL = n.tailnet().ControlURL()
	p.Hostname = pod.Hostname
	p.AdvertiseTags = n.requestedTags(pod)
	p.WantRunning = true
	p.NetfilterMode = preftype.NetfilterOff
	pod.Features.prefs(p)
	p.AutoUpdate.Check = false
	return p
}

// openState opens the node's keys and preferences, and makes them for a new
// node.
func (n *node) openState() (ipn.StateStore, error) {
	state, err := openStateStore(n.statePath(), func(write func() error) error { return n.e.take(stepState, write) })
	if err != nil {
		return nil, fmt.Errorf("opening the node's state %s: %w", n.statePath(), err)
	}
	if err := ensureNodeKey(state, n.lockKey); err != nil {
		return nil, fmt.Errorf("preparing the node's state %s: %w", n.statePath(), err)
	}
	return state, nil
}

// lockKey returns the node's tailnet lock key: one that marks its device as
// ours, where the tailnet knows such marks.
func (n *node) lockKey(machine key.MachinePublic) key.NLPrivate {
	if lock, ok := n.tailnet().LockKey(machine, n.record().Pod.ChosenName); ok {
		return lock
	}
	return key.NewNLPrivate()
}
