// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// findPatience is how long an agent may take to say whether it serves.
const findPatience = 20 * time.Second

// interrupted is the exit code of a tool that its user ended, as shells have it.
const interrupted = 130

// runTool runs one of the agent's tools, in the agent of the pod's host that
// serves. Its output is the tool's, byte by byte, and its exit code too.
func runTool(ctx context.Context, k kubectl, o options, s streams) (int, error) {
	pods, err := k.locate(ctx, o.namespace, o.args[:1])
	if err != nil {
		return 0, fmt.Errorf("looking for pod %s: %w", o.args[0], err)
	}
	p := pods[0]
	if p.host() == "" {
		return 0, fmt.Errorf("pod %s is not scheduled to a host yet", p.name())
	}
	agents, _, err := k.findAgents(ctx, o.agentNamespace, p.host())
	if err != nil {
		return 0, err
	}
	agent, err := k.serving(ctx, p.host(), agents)
	if err != nil {
		return 0, fmt.Errorf("pod %s: %w", p.name(), err)
	}
	args := append([]string{o.command, p.name()}, o.args[1:]...)
	if o.command == toolCapture {
		file, err := captureFile(args)
		if err != nil {
			return 0, err
		}
		switch {
		case file != nil:
			defer file.Close()
			s.out = file
		case isTerminal(s.out) && !slices.Contains(args, "-h") && !slices.Contains(args, "-help"):
			return 0, errors.New("a capture is not for a terminal: write -w FILE, or -w - into a pipe or a file")
		}
	}
	return k.pass(ctx, execArgs(agent, args), s)
}

// serving returns the agent of a host that serves its pods. Where there is but one
// it is that.
func (k kubectl) serving(ctx context.Context, host string, agents []pod) (pod, error) {
	running := slices.DeleteFunc(slices.Clone(agents), func(a pod) bool { return a.notRunning() != "" })
	switch {
	case len(agents) == 0:
		return pod{}, fmt.Errorf("its host %s has no agent", host)
	case len(running) == 0:
		return pod{}, fmt.Errorf("the agent of its host %s, %s, does not run: %s", host, agents[0].name(), agents[0].notRunning())
	case len(running) == 1:
		return running[0], nil
	}
	report, agent := k.askHost(ctx, host, running, findPatience)
	if report.Error != "" {
		return pod{}, fmt.Errorf("its host %s: %s", host, report.Error)
	}
	return agent, nil
}

// pass runs kubectl with the streams of this command, and returns its exit code.
// The tools read nothing: the input is left to other readers, such as the
// loop of a shell. There is no terminal on the other side, which would rewrite line
// ends.
func (k kubectl) pass(ctx context.Context, args []string, s streams) (int, error) {
	cmd := k.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = s.out, s.err
	// Interrupted at a terminal, kubectl gets the signal itself, and more than one
	// chance to end.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() > 0 {
		return exit.ExitCode(), nil
	}
	if ctx.Err() != nil {
		return interrupted, nil
	}
	return 0, err
}

// captureFile creates the file of a capture on the user's computer, and has the agent
// write the capture to its standard output: a file in the agent's container could not be
// read by the user. It is nil where the capture goes to standard output.
func captureFile(args []string) (io.WriteCloser, error) {
	for i, arg := range args {
		name, value, joined := strings.Cut(arg, "=")
		if name != "-w" && name != "--w" {
			continue
		}
		at := i
		if !joined {
			if at++; at == len(args) {
				return nil, nil // the tool says what is missing
			}
			value = args[at]
		}
		if value == "-" {
			return nil, nil
		}
		file, err := os.OpenFile(value, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600) // what pods say in clear text
		if err != nil {
			return nil, fmt.Errorf("creating the file of the capture: %w", err)
		}
		if args[at] = "-"; joined {
			args[at] = name + "=-"
		}
		return file, nil
	}
	return nil, nil
}
