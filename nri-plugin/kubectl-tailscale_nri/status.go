// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"slices"
	"time"

	"tailscale-nri/nri-plugin/internal/status"
)

// watchEvery is the time between two questions of status --watch: each is a kubectl for
// each host, and lists all pods.
const watchEvery = 5 * time.Second

// watchShare bounds the load on an API server that takes long to answer: between two
// questions it is left alone for as many times what the first took.
const watchShare = 4

// showStatus prints the nodes of all hosts, or of what was asked for.
func showStatus(ctx context.Context, k kubectl, o options, s streams) (int, error) {
	if o.watch {
		w := &watch{k: k, o: o, s: s, redraw: isTerminal(s.out) && o.format != status.JSON && o.format != status.YAML}
		return w.run(ctx)
	}
	g, err := gather(ctx, k, o)
	if err != nil {
		return 0, err
	}
	s.remark(g.notes...)
	return g.exitCode(), g.print(s.out, o.format)
}

// watch shows the status again and again.
type watch struct {
	k      kubectl
	o      options
	s      streams
	redraw bool            // the screen, each time; or what has changed is added
	last   []status.Report // nil until something was shown
	notes  []string        // that were shown with it
}

// run returns the last exit code when ctx ends. A cluster that is away may be back
// later; one that was never there is an error.
func (w *watch) run(ctx context.Context) (code int, err error) {
	for {
		start := time.Now()
		g, err := gather(ctx, w.k, w.o)
		pause := max(watchEvery, watchShare*time.Since(start))
		switch {
		case ctx.Err() != nil:
			return code, nil
		case err != nil && w.last == nil:
			return 0, err
		case err != nil:
			w.s.remark("kubectl tailscale-nri: " + err.Error())
			code = status.ExitNotAsked
		default:
			if err := w.show(g); err != nil {
				return 0, err
			}
			code = g.exitCode()
		}
		select {
		case <-ctx.Done():
			return code, nil
		case <-time.After(pause):
		}
	}
}

// show writes all at once, so that a screen does not flicker, and below it what could
// not be looked at, which is not the same each time.
func (w *watch) show(g *gathered) error {
	if w.redraw || !slices.Equal(w.notes, g.notes) {
		defer w.s.remark(g.notes...)
	}
	w.notes = g.notes
	var text bytes.Buffer
	now := g.all()
	switch {
	case w.redraw:
		text.WriteString("\x1b[2J\x1b[H") // clear, and begin at the top
	case w.last == nil:
	case !status.Changed(w.last, now):
		return nil
	case w.o.format == status.YAML:
		text.WriteString("---\n")
	default:
		text.WriteString("\n")
	}
	w.last = now
	if err := g.print(&text, w.o.format); err != nil {
		return err
	}
	_, err := text.WriteTo(w.s.out)
	return err
}

// all returns the reports of the hosts that have an agent, then the others.
func (g *gathered) all() []status.Report {
	return slices.Concat([]status.Report{}, g.reports, g.unserved)
}

func (g *gathered) print(w io.Writer, format string) error {
	return status.Print(w, g.all(), status.Options{Format: format, Hosts: true})
}

// exitCode returns the exit code for the reports. A host without an agent may be one that needs
// none: it counts if a pod there opted in.
func (g *gathered) exitCode() int {
	counted := slices.Clone(g.reports)
	for _, r := range g.unserved {
		if len(r.Nodes) > 0 {
			counted = append(counted, r)
		}
	}
	return status.ExitCode(counted, g.named...)
}

// isTerminal reports whether w is a character device other than the null device.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	fi, err := f.Stat()
	if err != nil || fi.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(fi, null)
}
