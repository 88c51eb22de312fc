// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"strings"
	"testing"

	"tailscale-nri/nri-plugin/internal/status"
)

// TestWatchShow: what is not a screen gets what has changed, and a screen all.
func TestWatchShow(t *testing.T) {
	report := func(state string, bytes uint64) *gathered {
		n := status.Node{Namespace: "default", Pod: "web", State: state, BytesIn: bytes}
		return &gathered{reports: []status.Report{{Host: "n1", Ready: true, Nodes: []status.Node{n}}}}
	}
	shown := func(w *watch) string {
		var out strings.Builder
		w.s.out = &out
		for _, g := range []*gathered{report(status.Pending, 0), report(status.Pending, 0), report(status.Running, 1), report(status.Running, 2)} {
			if err := w.show(g); err != nil {
				t.Fatal(err)
			}
		}
		return out.String()
	}
	for format, sep := range map[string]string{status.Table: "\n\nHOST", status.JSON: "}\n\n{", status.YAML: "\n---\n"} {
		out := shown(&watch{o: options{format: format}})
		if strings.Count(out, status.Pending) != 1 || strings.Count(out, status.Running) != 1 || strings.Count(out, sep) != 1 {
			t.Errorf("%s: got\n%s", format, out)
		}
	}
	var said strings.Builder
	w := &watch{s: streams{out: new(strings.Builder), err: &said}}
	for _, note := range []string{"a", "a", "b\x1b[31m"} {
		g := report(status.Running, 0)
		g.notes = []string{note}
		if err := w.show(g); err != nil {
			t.Fatal(err)
		}
	}
	if said.String() != "a\nb [31m\n" {
		t.Errorf("notes: got %q", said.String())
	}
	if out := shown(&watch{redraw: true}); strings.Count(out, "\x1b[2J\x1b[HHOST") != 4 || !strings.Contains(out, "n1") {
		t.Errorf("a screen: got\n%q", out)
	}
}
