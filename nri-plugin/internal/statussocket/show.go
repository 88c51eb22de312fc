// SPDX-License-Identifier: BSD-3-Clause

package statussocket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"tailscale.com/tstime"

	"tailscale-nri/nri-plugin/internal/podspec"
	"tailscale-nri/nri-plugin/internal/status"
)

// ErrNotRunning says that a pod is not Running though it should be, or the host not
// ready. What was printed says it all.
var ErrNotRunning = errors.New("not all pods are Running")

// View says what to show of a status.
type View struct {
	Format string   // one of status.Formats, "" is the table
	Pods   []string // NAMESPACE/POD; none is all
	Watch  bool     // again and again
}

// Show prints what the process on this host says of its pods. Its error is
// ErrNotRunning, or names pods that are not there, or is a CannotAsk.
func Show(ctx context.Context, socket string, of View, w io.Writer) error {
	if of.Watch {
		s := statusWatch{socket: socket, of: of, every: watchPause, w: w, redraw: IsTerminal(w) && !isForMachines(of.Format)}
		return s.run(ctx)
	}
	r, err := AskReport(ctx, socket)
	if err != nil {
		return CannotAsk{Err: err}
	}
	shown, missing := status.Select([]status.Report{r}, of.Pods)
	if err := status.Print(w, shown, status.Options{Format: of.Format}); err != nil {
		return CannotAsk{Err: err}
	}
	switch {
	case len(missing) > 0:
		return fmt.Errorf("not on host %s, or without the annotation %s: %s", r.Host, podspec.AnnotationEnabled, strings.Join(missing, ", "))
	case status.ExitCode(shown, of.Pods...) != status.ExitOK:
		return ErrNotRunning
	}
	return nil
}

// watchPause is the time between two questions.
const watchPause = 2 * time.Second

// statusWatch shows the status again and again.
type statusWatch struct {
	socket string
	of     View
	every  time.Duration
	w      io.Writer
	redraw bool // the screen, each time; or what has changed is added
}

// run returns nil when ctx ends. That the process goes away, as it does in a roll,
// is shown; one that was never there is an error.
func (s *statusWatch) run(ctx context.Context) error {
	var last []status.Report
	for ctx.Err() == nil {
		r, err := AskReport(ctx, s.socket)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && last == nil:
			return CannotAsk{Err: err}
		case err != nil:
			r = status.Report{APIVersion: status.APIVersion, Host: last[0].Host, Error: err.Error(), Nodes: []status.Node{}}
		}
		now, _ := status.Select([]status.Report{r}, s.of.Pods)
		if err := s.show(last, now); err != nil {
			return CannotAsk{Err: err}
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
	case s.of.Format == status.YAML:
		text.WriteString("---\n")
	default:
		text.WriteString("\n")
	}
	if err := status.Print(&text, now, status.Options{Format: s.of.Format}); err != nil {
		return err
	}
	_, err := s.w.Write(text.Bytes())
	return err
}

func isForMachines(format string) bool { return format == status.JSON || format == status.YAML }

// IsTerminal reports whether what is written to w goes to a terminal.
func IsTerminal(w io.Writer) (is bool) {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	if conn, err := f.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) {
			_, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
			is = err == nil
		})
	}
	return is
}
