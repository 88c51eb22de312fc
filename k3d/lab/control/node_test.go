// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"tailscale.com/control/controlclient"
	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnlocal"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/ipn/store/mem"
	"tailscale.com/net/netmon"
	"tailscale.com/net/tsdial"
	"tailscale.com/tailcfg"
	"tailscale.com/tsd"
	"tailscale.com/types/logger"
	"tailscale.com/types/logid"
	"tailscale.com/wgengine"
)

// testNode is a real node without a kernel: its packets go nowhere, but pings
// of all kinds are answered before they would.
type testNode struct {
	*ipnlocal.LocalBackend
	hostname string
}

func newNode(t *testing.T, s *Server, hostname, authKey string) *testNode {
	t.Helper()
	fatal := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("TS_LOGS_DIR", t.TempDir()) // or the backend makes /var/lib/tailscale
	sys := tsd.NewSystem()
	bus := sys.Bus.Get()
	t.Cleanup(bus.Close)
	monitor, err := netmon.New(bus, logger.Discard)
	fatal(err)
	t.Cleanup(func() { monitor.Close() })
	dialer := &tsdial.Dialer{Logf: logger.Discard}
	dialer.SetBus(bus)
	t.Cleanup(func() { dialer.Close() })
	engine, err := wgengine.NewUserspaceEngine(logger.Discard, wgengine.Config{
		EventBus:      bus,
		NetMon:        monitor,
		Dialer:        dialer,
		SetSubsystem:  sys.Set,
		ControlKnobs:  sys.ControlKnobs(),
		HealthTracker: sys.HealthTracker.Get(),
		Metrics:       sys.UserMetricsRegistry(),
	})
	fatal(err)
	sys.Set(engine)
	sys.Set(new(mem.Store))
	sys.Tun.Get().Start()
	lb, err := ipnlocal.NewLocalBackend(logger.Discard, logid.PublicID{1}, sys, controlclient.LoginDefault)
	fatal(err)
	t.Cleanup(lb.Shutdown)

	prefs := ipn.NewPrefs()
	prefs.ControlURL, prefs.Hostname, prefs.WantRunning = s.ControlURL(), hostname, true
	fatal(lb.Start(ipn.Options{AuthKey: authKey, UpdatePrefs: prefs}))
	fatal(lb.StartLoginInteractive(t.Context()))
	return &testNode{LocalBackend: lb, hostname: hostname}
}

// up waits for the node to run.
func (n *testNode) up(t *testing.T, ctx context.Context) *ipnstate.Status {
	t.Helper()
	n.awaitStatus(t, ctx, "running", func(st *ipnstate.Status) bool {
		return st.BackendState == ipn.Running.String() && len(st.TailscaleIPs) > 0
	})
	return n.Status()
}

// awaitStatus waits on the node's bus until cond holds.
func (n *testNode) awaitStatus(t *testing.T, ctx context.Context, what string, cond func(*ipnstate.Status) bool) {
	t.Helper()
	met := false
	check := func(*ipn.Notify) bool {
		met = cond(n.Status())
		return !met
	}
	const mask = ipn.NotifyInitialState | ipn.NotifyInitialHealthState | ipn.NotifyPeerChanges
	n.WatchNotifications(ctx, mask, nil, check)
	if !met {
		t.Fatalf("%s: waiting for %s: %v; status %+v", n.hostname, what, ctx.Err(), n.Status())
	}
}

// ping pings until there is an answer that is good enough. A single ping that
// gets lost, as one does that is faster than the news of its sender, is never
// answered, and ends with its context only.
func (n *testNode) ping(t *testing.T, ctx context.Context, to netip.Addr, typ tailcfg.PingType, good func(*ipnstate.PingResult) bool) {
	t.Helper()
	for {
		once, cancel := context.WithTimeout(ctx, time.Second)
		res, err := n.Ping(once, to, typ, 0)
		cancel()
		switch {
		case err == nil && res.Err == "" && good(res):
			return
		case ctx.Err() != nil:
			t.Fatalf("%s: no good answer to %v from %v: %+v, %v", n.hostname, typ, to, res, err)
		}
	}
}
