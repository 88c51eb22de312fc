// SPDX-License-Identifier: BSD-3-Clause

// Command tailscale-nri gives annotated Kubernetes pods a tailnet node each. It
// runs once per cluster node, hears of pod sandboxes from the container runtime
// over NRI, and hands those that opted in to the engine.
//
// This package knows the runtime: its socket, its events, what a pod's
// annotations mean, and the environment that the process is configured with.
//
// It does not touch a pod's network or a tailnet, which is the engine's, and it
// does not talk to the Kubernetes API: all it knows of a pod comes from the
// runtime.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"
)

func main() {
	up := findParent(os.Getenv)
	if !up.supervises && serves(os.Args[1:]) {
		cfg, _ := readConfig(os.Getenv) // what is wrong with it is the child's to say
		code, err := supervise(newLogger(cfg, os.Stderr))
		if err != nil {
			fmt.Fprintln(os.Stderr, "tailscale-nri:", err)
		}
		os.Exit(code)
	}
	up.adopt()
	// Until the very end: a second signal, after the one that the supervisor
	// has passed on, is not to cut a graceful end short.
	ctx, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, os.Getenv, os.Args[1:], os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "tailscale-nri:", err)
	}
	up.mark(markEnds)
	if err != nil {
		os.Exit(1)
	}
}

// serves reports whether the program was called in order to serve.
func serves(args []string) bool {
	cmd, err := parseArgs(args, os.Getenv, io.Discard)
	return err == nil && cmd.name == cmdServe
}

// run is the whole program. It returns nil when ctx ends: the pods keep their
// links, and no node logs out, so that the next process goes on where this one
// stopped.
func run(ctx context.Context, getenv func(string) string, args []string, stdout, stderr io.Writer) error {
	cmd, err := parseArgs(args, getenv, stdout)
	if err != nil || cmd.name == cmdHelp {
		return err
	}
	switch cmd.name {
	case cmdVersion:
		return printVersion(stdout)
	case cmdStatus:
		socket, err := statusSocket(cmd.getenv)
		if err != nil {
			return err
		}
		return showStatus(ctx, socket, cmd, stdout)
	}
	cfg, err := readConfig(cmd.getenv)
	if err != nil {
		return err
	}
	if err := checkPrivileges(); err != nil {
		return err
	}
	if getenv("GOGC") == "" {
		time.AfterFunc(startTime, func() { debug.SetGCPercent(gcPercent) })
	}
	return serve(ctx, cfg, findParent(getenv), newLogger(cfg, stderr))
}

// gcPercent is what GOGC is set to, unless the environment sets it. Each
// node's WireGuard buffers count as 44 MB of heap of which a fraction is ever
// touched, so at 100 percent the collector would let that much garbage grow
// per node before it looks. The buffers hold no pointers: looking is cheap.
const gcPercent = 10

// startTime is how long Go's own pace is kept: while all nodes start at once,
// the heap grows from nothing, and the collector at 10 percent would run for a
// fifth of the time.
const startTime = 10 * time.Second

// serve builds the parts and runs them until ctx ends or one of them fails.
func serve(ctx context.Context, cfg Config, up parent, log *slog.Logger) error {
	ln, err := listenStatus(ctx, cfg.StatusSocket)
	if err != nil {
		return err
	}
	defer ln.Close()
	place, err := up.shelf()
	if err != nil {
		return err
	}
	sockets := openStore(place)
	defer sockets.clear()
	eng, err := newEngine(cfg, sockets, log)
	if err != nil {
		return err
	}
	status := &statusServer{nodes: eng.Status, ln: ln}
	reg := &registration{
		socket: cfg.NRISocket,
		plugin: &plugin{pods: eng, defaults: podDefaults{cluster: cfg.Cluster, tags: cfg.Tags}, log: log},
		log:    log,
	}
	up.mark(markServes)
	attrs := []any{"version", ourVersion(), "state", cfg.StateDir, "nri", cfg.NRISocket}
	if up.restarts > 0 {
		attrs = append(attrs, "restarts", up.restarts)
	}
	log.Info("starting", attrs...)
	return runAll(ctx, eng.Run, status.Run, reg.Run)
}
