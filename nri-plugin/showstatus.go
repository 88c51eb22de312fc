// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"tailscale.com/tstime"

	"tailscale-nri/nri-plugin/internal/podspec"
	"tailscale-nri/nri-plugin/internal/status"
)

// errNotRunning says that a pod is not Running though it should be, or the host not
// ready. What was printed says it all.
var errNotRunning = errors.New("not all pods are Running")

// showStatus prints what the process on this host says of its pods. Its error is
// errNotRunning, or names pods that are not there, or is a cannotAsk.
func showStatus(ctx context.Context, socket string, cmd command, w io.Writer) error {
	if cmd.watch {
		s := statusWatch{socket: socket, cmd: cmd, every: watchPause, w: w, redraw: isTerminal(w) && !isForMachines(cmd.output)}
		return s.run(ctx)
	}
	r, err := askReport(ctx, socket)
	if err != nil {
		return cannotAsk{err}
	}
	shown, missing := status.Select([]status.Report{r}, cmd.pods)
	if err := status.Print(w, shown, status.Options{Format: cmd.output}); err != nil {
		return cannotAsk{err}
	}
	switch {
	case len(missing) > 0:
		return fmt.Errorf("not on host %s, or without the annotation %s: %s", r.Host, podspec.AnnotationEnabled, strings.Join(missing, ", "))
	case status.ExitCode(shown, cmd.pods...) != status.ExitOK:
		return errNotRunning
	}
	return nil
}

// watchPause is the time between two questions.
const watchPause = 2 * time.Second

// statusWatch shows the status again and again.
type statusWatch struct {
	socket string
	cmd    command
	every  time.Duration
	w      io.Writer
	redraw bool // the screen, each time; or what has changed is added
}

// run returns nil when ctx ends. That the process goes away, as it does in a roll,
// is shown; one that was never there is an error.
func (s *statusWatch) run(ctx context.Context) error {
	var last []status.Report
	for ctx.Err() == nil {
		r, err := askReport(ctx, s.socket)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && last == nil:
			return cannotAsk{err}
		case err != nil:
			r = status.Report{APIVersion: status.APIVersion, Host: last[0].Host, Error: err.Error(), Nodes: []status.Node{}}
		}
		now, _ := status.Select([]status.Report{r}, s.cmd.pods)
		if err := s.show(last, now); err != nil {
			return cannotAsk{err}
		}
		last = now
		tstime.Sleep(ctx, s.every)
	}
	return nil
}

// show writes now at once, so that a screen does not flicker.
func (s *statusWatch) show(last, now []status.Report) error {
	var text bytes.Buffer
	switch {
	case s.redraw:
		text.WriteString("\x1b[2J\x1b[H") // clear, and begin at the top
	case last == nil:
	case !status.Changed(last, now):
		return nil
	case s.cmd.output == status.YAML:
		text.WriteString("---\n")
	default:
		text.WriteString("\n")
	}
	if err := status.Print(&text, now, status.Options{Format: s.cmd.output}); err != nil {
		return err
	}
	_, err := s.w.Write(text.Bytes())
	return err
}

func isForMachines(format string) bool { return format == status.JSON || format == status.YAML }
