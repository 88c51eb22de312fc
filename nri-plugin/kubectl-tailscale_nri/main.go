// SPDX-License-Identifier: BSD-3-Clause

// Command kubectl-tailscale_nri is a plugin of kubectl: kubectl tailscale-nri status
// shows the tailnet nodes of all hosts' pods in one table. It runs on the user's
// computer and asks the agent of each host, a pod of the DaemonSet, by kubectl exec.
//
// All that it does in a cluster is done by the user's own kubectl, and so with the
// user's kubeconfig, context, proxies, logins and rights. What an agent says is
// decoded by package status; ping, capture and the like are the agent's, and only
// passed on.
//
// It reads no kubeconfig, talks to no API server, installs nothing in the cluster
// and changes nothing there.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"tailscale-nri/nri-plugin/internal/status"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	s := streams{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	code := run(ctx, os.Getenv, os.Args[1:], s)
	stop()
	os.Exit(code)
}

// streams are where the command reads and writes.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// remark says on standard error what could not be looked at.
func (s streams) remark(notes ...string) {
	for _, note := range notes {
		if note != "" {
			fmt.Fprintln(s.err, status.Clean(note))
		}
	}
}

// run is the whole program. It returns the exit code: one of package status's, or
// that of a tool.
func run(ctx context.Context, getenv func(string) string, args []string, s streams) int {
	code, err := start(ctx, getenv, args, s)
	if err == nil {
		return code
	}
	if ctx.Err() == nil {
		s.remark("kubectl tailscale-nri: " + err.Error())
	}
	return status.ExitNotAsked
}

func start(ctx context.Context, getenv func(string) string, args []string, s streams) (int, error) {
	o, err := parseArgs(args)
	if err != nil {
		return 0, err
	}
	if o.command == cmdHelp {
		fmt.Fprint(s.out, usage)
		return status.ExitOK, nil
	}
	k, err := findKubectl(getenv, o)
	switch {
	case err != nil:
		return 0, err
	case o.command == cmdStatus:
		return showStatus(ctx, k, o, s)
	case o.command == cmdDoctor:
		return showDoctor(ctx, k, o, s)
	case o.command == cmdVersion:
		return showVersions(ctx, k, o, s)
	}
	return runTool(ctx, k, o, s)
}
