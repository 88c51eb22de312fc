// SPDX-License-Identifier: BSD-3-Clause

// Command tailscale-nri gives annotated Kubernetes pods a tailnet node each. It
// runs once per host, hears of pod sandboxes from the container runtime
// over NRI, and hands those that opted in to the engine.
//
// This package has the command line, and connects the parts of a process that serves: the
// engine, the hooks (internal/nri), the configuration (internal/config) and its changes,
// the status (internal/statussocket) and the metrics. Each part is a package of its own
// below internal.
//
// It does not touch a pod's network or a tailnet, which is the engine's (its doctor
// looks at both, and changes neither). All it knows of a pod comes from the runtime: it
// asks the Kubernetes API for nothing, and serves pods while there is none. It talks to
// that API only where it was told to: to keep workloads' devices in Secrets
// (internal/kubestate), and to show there the state of the pods' nodes
// (internal/kubestatus).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"tailscale-nri/nri-plugin/internal/buildinfo"
	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/doctor"
	"tailscale-nri/nri-plugin/internal/logging"
	"tailscale-nri/nri-plugin/internal/ocihook"
	"tailscale-nri/nri-plugin/internal/podtools"
	"tailscale-nri/nri-plugin/internal/statussocket"
	"tailscale-nri/nri-plugin/internal/supervisor"
)

// version is set by the linker (-X main.version=…, see the Makefile).
var version string

func main() {
	buildinfo.SetVersion(version)
	if ocihook.Is(os.Args) {
		if err := ocihook.Run(os.Args, os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, "tailscale-nri:", err)
			os.Exit(1)
		}
		return
	}
	up := supervisor.FindParent(os.Getenv)
	if !up.Supervises && serves(os.Args[1:]) {
		code, err := supervisor.Run(mainLogger)
		if err != nil {
			logging.Error(mainLogger(), "cannot serve", err)
		}
		os.Exit(code)
	}
	up.CloseOnExec()
	trustOwnRoots()
	report := func(err error) { fmt.Fprintln(os.Stderr, "tailscale-nri:", err) }
	if serves(os.Args[1:]) {
		log := mainLogger()
		logging.TakeStandardLog(log)
		report = func(err error) { logging.Error(log, "cannot serve", err) }
	}
	// Until the very end: a second signal, after the one that the supervisor
	// has passed on, is not to cut a graceful end short.
	ctx, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, os.Getenv, os.Args[1:], os.Stdout, os.Stderr)
	if errors.Is(err, errRestart) {
		up.Mark(supervisor.MarkRestart)
		return
	}
	if err != nil && !errors.Is(err, doctor.ErrFindings) && !errors.Is(err, statussocket.ErrNotRunning) {
		report(err)
	}
	up.Mark(supervisor.MarkExit)
	switch {
	case errors.As(err, new(statussocket.CannotAsk)):
		os.Exit(2)
	case err != nil:
		os.Exit(1)
	}
}

// mainLogger is the log of a process that serves, or that supervises one.
func mainLogger() *slog.Logger {
	cfg, _ := config.Read(os.Getenv) // serve reports what is wrong with it
	return logging.New(cfg, os.Stderr)
}

// serves reports whether the program was called in order to serve.
func serves(args []string) bool {
	cmd, err := parseArgs(args, os.Getenv, io.Discard)
	return err == nil && cmd.name == cmdServe
}

// misused is the error of a bad command line; some commands then end with 2.
func misused(args []string, err error) error {
	if slices.Contains(args, cmdDoctor) || slices.Contains(args, cmdStatus) || slices.ContainsFunc(args, podtools.Is) {
		return statussocket.CannotAsk{Err: err}
	}
	return err
}

// run is the whole program. It returns nil when ctx ends, and errRestart when it is to be
// started again. The pods keep their links and no node logs out, so that the next process
// continues where this one stopped.
func run(ctx context.Context, getenv func(string) string, args []string, stdout, stderr io.Writer) error {
	cmd, err := parseArgs(args, getenv, stdout)
	switch {
	case err != nil:
		return misused(args, err)
	case cmd.name == cmdHelp:
		return nil
	}
	if podtools.Is(cmd.name) {
		return podtools.Run(ctx, cmd.name, cmd.rest, cmd.getenv, stdout, stderr)
	}
	switch cmd.name {
	case cmdVersion:
		return buildinfo.Print(stdout)
	case cmdStatus, cmdReady, cmdLive:
		return askServing(ctx, cmd, stdout)
	case cmdDoctor:
		return doctor.Run(ctx, doctor.NewHost(cmd.getenv, cmd.limit), cmd.json, stdout)
	}
	return serve(ctx, cmd.getenv, supervisor.FindParent(getenv), stderr)
}

// askServing asks the process that serves.
func askServing(ctx context.Context, cmd command, stdout io.Writer) error {
	socket, err := config.StatusSocket(cmd.getenv)
	switch {
	case err != nil && cmd.name == cmdStatus:
		return statussocket.CannotAsk{Err: err}
	case err != nil:
		return err
	case cmd.name == cmdStatus:
		return statussocket.Show(ctx, socket, statussocket.View{Format: cmd.output, Pods: cmd.pods, Watch: cmd.watch}, stdout)
	}
	return statussocket.Probe(ctx, socket, cmd.name, stdout)
}
