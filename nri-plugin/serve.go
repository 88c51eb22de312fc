// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"time"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/buildinfo"
	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/logging"
	"tailscale-nri/nri-plugin/internal/metrics"
	"tailscale-nri/nri-plugin/internal/nri"
	"tailscale-nri/nri-plugin/internal/ocihook"
	"tailscale-nri/nri-plugin/internal/podspec"
	"tailscale-nri/nri-plugin/internal/privileges"
	"tailscale-nri/nri-plugin/internal/statussocket"
	"tailscale-nri/nri-plugin/internal/supervisor"
)

// gcPercent is what GOGC is set to, unless the environment sets it. A node holds about
// 1.2 MB of heap, and at 100 percent its process as much again. At 25 percent the process
// is 30 percent smaller, and a change of the host's interfaces takes a tenth more CPU
// time. At 10 percent it is no smaller, and takes another eighth more.
const gcPercent = 25

// startTime is how long Go's own pace is kept: while all nodes start at once,
// the heap grows from nothing, and the collector would run five times as often.
const startTime = 10 * time.Second

// serve builds the parts and runs them until ctx ends or one of them fails.
//
// A bad configuration is an error, unless it comes from a directory or only the policy is
// bad. Those can be fixed while the process runs: it stays, answers probes and commands
// with what is wrong, and continues by itself. Only the configuration is waited for in
// this way: a status socket that cannot be opened, or a state directory that cannot be
// created, claimed or read, ends the process in either case. In a DaemonSet that is
// CrashLoopBackOff, with the reason in the log and, as deploy has it, in the termination
// message.
func serve(ctx context.Context, getenv func(string) string, up supervisor.Parent, stderr io.Writer) error {
	began, cfg, bad := config.Load(getenv)
	if bad == nil {
		bad = privileges.Check()
	}
	if bad != nil && cfg.Dir == "" && !podspec.IsPolicyAlone(bad) {
		return bad
	}
	log, h := logging.New(cfg, stderr), &statussocket.Health{}
	m := metrics.New(h, up.Restarts)
	checkRoots(getenv, log)
	var parts []func(context.Context) error
	if socket, err := config.StatusSocket(began.Get); err == nil {
		ln, err := statussocket.Listen(ctx, socket)
		if err != nil {
			return err
		}
		defer ln.Close()
		parts = append(parts, (&statussocket.Server{Health: h, Host: hostName(cfg), Listener: ln}).Run)
	}
	held := &podspec.Policies{}
	held.Set(cfg.Policy)
	if cfg.MetricsAddr != "" {
		parts = append(parts, (&metrics.Server{Addr: cfg.MetricsAddr, Read: m.Read, Log: log}).Run)
	}
	if cfg.Dir != "" || cfg.PolicyFile != "" {
		w := &configWatch{getenv: getenv, began: began, policies: held, health: h, log: log, waits: bad != nil}
		if cfg.Policy != nil {
			w.ranges = cfg.Policy.Ranges
		}
		if bad != nil {
			w.complain(bad, false)
			up.Mark(supervisor.MarkServes)
		}
		parts = append(parts, w.Run)
	}
	if bad == nil {
		d := &daemon{cfg: cfg, policies: held, up: up, health: h, meters: m, log: log, ownPace: getenv("GOGC") != ""}
		parts = append(parts, d.Run)
	}
	return runAll(ctx, parts...)
}

// daemon serves the pods of this host.
type daemon struct {
	cfg      config.Config
	policies *podspec.Policies
	up       supervisor.Parent
	health   *statussocket.Health
	meters   *metrics.Meters
	log      *slog.Logger
	ownPace  bool // of Go's collector
}

// Run serves until ctx ends. While another process serves, it stands by: it does in
// advance what can be done in advance, and nothing else, so that the pods are without a
// process for as short a time as possible.
func (d *daemon) Run(ctx context.Context) error {
	place, err := d.up.FDStore()
	if err != nil {
		return err
	}
	config.UseProxy(d.cfg.Proxy)
	tn, err := newTailnets(d.cfg, d.log)
	if err != nil {
		return err
	}
	claim, err := engine.ClaimState(ctx, d.cfg.StateDir, func() { d.standBy(place) })
	switch {
	case err != nil && ctx.Err() != nil:
		return nil
	case err != nil:
		return err
	}
	sockets := supervisor.OpenSockets(place)
	defer func() {
		// A process that is started again finds them.
		if !errors.Is(context.Cause(ctx), errRestart) {
			sockets.Clear()
		}
	}()
	kube := newKubeStatus(d.cfg, d.log)
	eng, err := newEngine(d.cfg, tn, claim, sockets, kube.tell(), d.log)
	if err != nil {
		return err
	}
	d.begin(eng)
	d.meters.Serves(eng.Measures, tn.calls)
	hooks := ocihook.NewServer(d.cfg.StateDir, eng, eng, d.log)
	p := &nri.Plugin{
		Pods: eng, Defaults: defaultsOf(d.cfg), Policies: d.policies, Resolver: hooks.Resolver, Hooks: hooks,
		Handlers: d.cfg.Handlers, OwnUID: d.cfg.PodUID, Log: d.log, Meters: d.meters,
	}
	d.health.Warns(p.Refused.Nodes)
	reg := &nri.Registration{Socket: d.cfg.NRISocket, Plugin: p, Health: d.health, Log: d.log}
	return runAll(ctx, kube.Run, func(ctx context.Context) error {
		return runEngine(ctx, eng.Run, func(ctx context.Context) error { return runAll(ctx, reg.Run, hooks.Run) })
	})
}

// standBy notes that another process serves. The sockets that an earlier child of the
// same supervisor has left in the store are out of date by then: they hold packets
// that the other process has received as well.
func (d *daemon) standBy(place supervisor.FDStore) {
	d.health.StandBy(func() string { return nri.LacksRuntime(d.cfg.NRISocket) })
	d.up.Mark(supervisor.MarkServes)
	d.log.Info("another process serves this host's pods, standing by", "version", buildinfo.Version(), "state", d.cfg.StateDir)
	if why := nri.LacksRuntime(d.cfg.NRISocket); why != "" {
		d.log.Warn("this process could not take over", "reason", why)
	}
	supervisor.OpenSockets(place).Clear()
}

// begin notes that this process serves.
func (d *daemon) begin(eng *engine.Engine) {
	d.health.Serves(eng)
	d.health.PodAPI.Serves(eng.PodAPI())
	d.up.Mark(supervisor.MarkServes)
	if !d.ownPace {
		time.AfterFunc(startTime, func() { debug.SetGCPercent(gcPercent) })
	}
	d.logStart()
}

// logStart says what is started, and how it reaches the tailnet.
func (d *daemon) logStart() {
	attrs := []any{"version", buildinfo.Version(), "state", d.cfg.StateDir, "nri", d.cfg.NRISocket}
	if via := config.ProxyHosts(d.cfg.Proxy); via != "" {
		attrs = append(attrs, "proxy", via)
	}
	if d.cfg.Policy != nil {
		attrs = append(attrs, "policy", d.cfg.PolicyFile, "rules", len(d.cfg.Policy.RuleNames()))
	}
	if len(d.cfg.Profiles) > 0 {
		attrs = append(attrs, "profiles", slices.Sorted(maps.Keys(d.cfg.Profiles)))
	}
	if d.up.Restarts > 0 {
		attrs = append(attrs, "restarts", d.up.Restarts)
	}
	d.log.Info("starting", attrs...)
}

// endPatience is how long the engine may take to end. It takes milliseconds; a
// backend that hangs must not keep the pods from the process that stands by.
const endPatience = 10 * time.Second

// runEngine runs the engine and what calls it. The engine ends last: a runtime
// that is still connected would hear from an ended one that its pods are refused.
// One that does not end is left to the end of this process, which ends all.
func runEngine(ctx context.Context, eng, reg func(context.Context) error) error {
	engineCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- eng(engineCtx) }()
	return runAll(ctx,
		func(context.Context) error {
			select {
			case err := <-ended:
				return err
			case <-engineCtx.Done():
			}
			select {
			case err := <-ended:
				return err
			case <-time.After(endPatience):
				return fmt.Errorf("the nodes have not ended within %v: leaving them to the end of this process", endPatience)
			}
		},
		func(ctx context.Context) error {
			defer stop()
			return reg(ctx)
		})
}
