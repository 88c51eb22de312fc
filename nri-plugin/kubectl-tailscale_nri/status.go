// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"tailscale-nri/nri-plugin/internal/status"
)

// watchEvery is how often status --watch asks again. Each time is a kubectl for each host.
const watchEvery = 5 * time.Second

// showStatus prints the nodes of all hosts, or of what was asked for; with --watch
// again and again, until ctx ends.
func showStatus(ctx context.Context, k kubectl, o options, s streams) (code int, err error) {
	if !o.watch {
		g, err := gather(ctx, k, o)
		if err != nil {
			return 0, err
		}
		for _, note := range g.notes {
			fmt.Fprintln(s.err, note)
		}
		return g.exitCode(), g.print(s.out, o.format)
	}
	for first := true; ; first = false {
		var text bytes.Buffer
		g, err := gather(ctx, k, o)
		switch {
		case ctx.Err() != nil:
			return code, nil
		case err != nil:
			// A cluster that is away now may be back later.
			fmt.Fprintln(s.err, "kubectl tailscale-nri:", err)
			code = status.ExitNotAsked
		default:
			code, err = g.exitCode(), g.print(&text, o.format)
		}
		switch {
		case isTerminal(s.out) && text.Len() > 0:
			fmt.Fprint(s.out, clearScreen)
		case !first && o.format == status.YAML:
			fmt.Fprintln(s.out, "---")
		case !first && text.Len() > 0:
			fmt.Fprintln(s.out)
		}
		if _, err := text.WriteTo(s.out); err != nil {
			return 0, err
		}
		select {
		case <-ctx.Done():
			return code, nil
		case <-time.After(watchEvery):
		}
	}
}

// clearScreen is what a terminal takes for that.
const clearScreen = "\x1b[H\x1b[2J"

// print writes the hosts that have an agent first.
func (g *gathered) print(w io.Writer, format string) error {
	return status.Print(w, slices.Concat(g.reports, g.unserved), status.Options{Format: format})
}

// exitCode is that of the reports. A host without an agent may be none of ours: it
// counts if a pod there opted in.
func (g *gathered) exitCode() int {
	counted := slices.Clone(g.reports)
	for _, r := range g.unserved {
		if len(r.Nodes) > 0 {
			counted = append(counted, r)
		}
	}
	return status.ExitCode(counted)
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeCharDevice != 0
}
