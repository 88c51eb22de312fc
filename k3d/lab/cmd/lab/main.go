// SPDX-License-Identifier: BSD-3-Clause

// Command lab starts and ends a lab (package lab) and looks around in it. Its subcommand control is what the
// lab itself runs. It does not build anything and runs no tests.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"tailscale-nri/k3d/lab"
)

const usage = `lab COMMAND
  up                         end what is there and start containerd and a control plane
  cluster up|kubectl|starts|down
                             Kubernetes: two nodes and a tailnet
  demo                       play the whole of it on a new lab; KEEP=1 leaves it up
  demo down                  end that one
  bench [-only PART,...]     measure attach, traffic, memory and CPU time on labs of its own
  blackout [-pods N] [-rounds N] [-events EVENT,...]
                             measure the gaps of traffic when things restart, on labs of its own
  soak [-cycles N] [-seed N] [-parallel N]
                             have pods come and go while everything fails, and look for leaks
  down                       end it and remove all that it made
  pods                       list the pods
  run NAME [KEY=VALUE...]    run a pod with these annotations and one container of labtool
  stop POD-ID                stop a pod and remove it
  peer [NAME]                start a stock tailscaled and log it in
  devices                    list the tailnet's nodes
  exec node|net|PEER|POD-ID CMD [ARG...]
                             run a program of this machine in there
  control                    (what the lab runs) serve the control plane

LAB_DIR   where it stands (/run/$LAB_NAME)
LAB_NAME  its name (tsnri)
LAB_BUILD where the binaries are (.build of the module around the working directory)`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()
	err := run(ctx, os.Args[1:])
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && err.Error() == exit.Error(): // of a program that has said why itself
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func config() lab.Config {
	return lab.Config{
		Name: os.Getenv("LAB_NAME"), Dir: os.Getenv("LAB_DIR"), Build: os.Getenv("LAB_BUILD"),
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	switch args[0] {
	case "up":
		return up(ctx)
	case "down":
		return lab.Down(config())
	case "cluster":
		return cluster(ctx, args[1:])
	case "demo":
		return play(ctx, args[1:])
	case "bench":
		return benchmark(ctx, args[1:])
	case "blackout":
		return measureGaps(ctx, args[1:])
	case "soak":
		return soaking(ctx, args[1:])
	case "control":
		return lab.ServeControl(ctx, config())
	}
	look, ok := map[string]func(context.Context, *lab.Lab, []string) error{
		"pods": pods, "run": runPod, "stop": stopPod, "devices": devices, "peer": peer, "exec": execIn,
	}[args[0]]
	if !ok {
		return fmt.Errorf("unknown command %q\n%s", args[0], usage)
	}
	running, err := lab.Open(config())
	if err != nil {
		return err
	}
	return errors.Join(look(ctx, running, args[1:]), running.Close())
}

// up leaves the lab running.
func up(ctx context.Context) error {
	running, err := lab.Up(ctx, config())
	if err != nil {
		return err
	}
	if _, err := running.StartControl(ctx); err != nil {
		return errors.Join(err, running.Down())
	}
	return running.Close()
}
