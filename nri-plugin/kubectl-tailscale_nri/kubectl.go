// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"
)

// envKubectl names a kubectl other than the one in PATH.
const envKubectl = "KUBECTL"

// kubectl runs the user's own.
type kubectl struct {
	program string
	flags   []string // of each call
}

func findKubectl(getenv func(string) string, o options) (kubectl, error) {
	program, err := exec.LookPath(cmp.Or(getenv(envKubectl), "kubectl"))
	if err != nil {
		return kubectl{}, fmt.Errorf("finding kubectl: %w: put it on the PATH, or set %s to its path", err, envKubectl)
	}
	return kubectl{program: program, flags: o.kubectl}, nil
}

// command is a call that ends with ctx. It reads nothing.
func (k kubectl) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, k.program, slices.Concat(k.flags, args)...)
	cmd.WaitDelay = time.Second // for what a killed one has left behind with its pipes
	return cmd
}

// kubectlError is why a call failed.
type kubectlError struct {
	said string // on standard error, in one line
	err  error
}

func (e kubectlError) Error() string { return cmp.Or(e.said, e.err.Error()) }
func (e kubectlError) Unwrap() error { return e.err }

// isForbidden reports whether the user lacks a right.
func isForbidden(err error) bool {
	e, ok := errors.AsType[kubectlError](err)
	return ok && strings.Contains(e.said, "(Forbidden)")
}

// output runs kubectl to its end. It returns the standard output also with an
// error, which is a kubectlError.
func (k kubectl) output(ctx context.Context, args ...string) ([]byte, error) {
	cmd := k.command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		err = kubectlError{said: explain(stderr.String()), err: err}
		if ctx.Err() != nil {
			err = kubectlError{err: ctx.Err()}
		}
	}
	return stdout.Bytes(), err
}

// get decodes what kubectl get says into out.
func (k kubectl) get(ctx context.Context, out any, args ...string) error {
	answer, err := k.output(ctx, append([]string{"get", "-o", "json"}, args...)...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("reading the answer to kubectl get %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// exec runs a command of an agent and returns its standard output, also where it
// or kubectl fails. kubectl's exit code does not distinguish the two.
func (k kubectl) exec(ctx context.Context, agent pod, timeout time.Duration, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %v", timeout))
	defer cancel()
	out, err := k.output(ctx, execArgs(agent, args)...)
	if ctx.Err() != nil {
		return nil, kubectlError{err: context.Cause(ctx)}
	}
	return out, err
}

// execArgs returns the arguments with which kubectl runs a command in an agent's container.
func execArgs(agent pod, args []string) []string {
	m := agent.Metadata
	return append([]string{"exec", "-n", m.Namespace, m.Name, "-c", agentContainer, "--", "/tailscale-nri"}, args...)
}

// isLog matches a line that kubectl's libraries log before kubectl's own error.
var isLog = regexp.MustCompile(`^[IWEF][0-9]{4} `)

// explain returns what kubectl, or a command that it ran, wrote to standard error, in one
// line and without what does not give a reason.
func explain(stderr string) string {
	var lines []string
	for line := range strings.Lines(stderr) {
		line = strings.TrimSpace(line)
		for _, noise := range []string{"command terminated with exit code", "Warning:", "Defaulted container"} {
			if strings.HasPrefix(line, noise) {
				line = ""
			}
		}
		line = strings.TrimPrefix(strings.TrimPrefix(line, "error: "), "Error from server: ")
		// kubectl says some of them several times.
		if line != "" && !isLog.MatchString(line) && !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}
