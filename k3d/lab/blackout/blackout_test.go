// SPDX-License-Identifier: BSD-3-Clause

package blackout

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"tailscale-nri/k3d/lab"
)

// TestRun kills the plugin of one pod for real. It wants no gap to be short, only to be there, and nothing to remain.
func TestRun(t *testing.T) {
	var table, lines bytes.Buffer
	cfg := Config{
		Lab: lab.Config{Name: "tsnri-bot"}, Pods: 1, Rounds: 1, Events: []string{"kill9"}, OursOnly: true,
		Table: &table, JSON: &lines, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	if err := Run(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + table.String())
	var names []string
	for dec := json.NewDecoder(&lines); ; {
		var l line
		err := dec.Decode(&l)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, l.Name)
		if l.N != 1 || l.Value == nil || *l.Value != l.Min || l.Min != l.Max || l.Min < 5 || l.Open > 0 {
			t.Errorf("expected one gap that began and ended, saw %+v", l)
		}
	}
	if got := strings.Join(names, " "); got != "kill9_in_ms_1 kill9_out_ms_1 kill9_tcp_ms_1" {
		t.Errorf("measured %s", got)
	}
	if left, err := lab.Remains(cfg.Lab); err != nil || len(left) > 0 {
		t.Errorf("left after the run: %q, %v", left, err)
	}
}

func TestRunRefusesEvent(t *testing.T) {
	err := Run(t.Context(), Config{Events: []string{"kill9", "nonsense"}})
	if err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("got %v", err)
	}
}

const ms = time.Millisecond

func TestLongest(t *testing.T) {
	for _, c := range []struct {
		name        string
		at          []time.Duration
		from, until time.Duration
		want        silence
	}{
		{"nothing ever", nil, 10, 50, silence{40, true}},
		{"nothing in it", []time.Duration{3}, 10, 50, silence{47, true}},
		{"begins before", []time.Duration{0, 8, 30, 40, 50}, 10, 50, silence{22, false}},
		{"what was before does not count", []time.Duration{0, 90, 100, 110}, 95, 110, silence{10, false}},
		{"what comes after does not end it", []time.Duration{0, 10, 90}, 5, 50, silence{40, true}},
		{"ends at the very end", []time.Duration{0, 50}, 10, 50, silence{50, false}},
		{"an arrival at the beginning is before it", []time.Duration{0, 10, 20}, 10, 20, silence{10, false}},
		{"the longest of several", []time.Duration{0, 10, 40, 45, 100, 101}, 0, 101, silence{55, false}},
	} {
		a := &arrivals{at: c.at}
		if got := a.longest(c.from, c.until); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

// wellOff is an outcome whose gaps are d.
func wellOff(d time.Duration) outcome {
	s := silence{gap: d}
	return outcome{name: "pod1", in: s, out: s, tcp: s}
}

// sampleReport has two rounds of ours, of which one lost its connection, and one of stock that never came back.
func sampleReport() *report {
	r := newReport(events[:1])
	r.addCalm(scale{1, 2, 5 * ms}, []outcome{wellOff(5 * ms)})
	r.add("kill9", 1, []outcome{wellOff(80 * ms)})
	broken := wellOff(90 * ms)
	broken.tcp, broken.broken = silence{7 * time.Second, true}, errors.New("reset by peer")
	r.add("kill9", 1, []outcome{broken})
	r.addCPU("kill9", 1, 300*ms)
	silent := silence{20 * time.Second, true}
	r.add("stock_kill9", 1, []outcome{{in: silent, out: silent, tcp: silent}})
	return r
}

func TestEncode(t *testing.T) {
	var out bytes.Buffer
	if err := sampleReport().encode(&out); err != nil {
		t.Fatal(err)
	}
	const want = `{"name":"kill9_in_ms_1","value":85,"unit":"ms","n":2,"min":80,"max":90}
{"name":"kill9_out_ms_1","value":85,"unit":"ms","n":2,"min":80,"max":90}
{"name":"kill9_tcp_ms_1","value":null,"unit":"ms","n":2,"min":80,"max":7000,"open":1,"survived":false,"broken":1}
{"name":"stock_kill9_in_ms_1","value":20000,"unit":"ms","n":1,"min":20000,"max":20000,"open":1}
{"name":"stock_kill9_out_ms_1","value":20000,"unit":"ms","n":1,"min":20000,"max":20000,"open":1}
{"name":"stock_kill9_tcp_ms_1","value":20000,"unit":"ms","n":1,"min":20000,"max":20000,"open":1}
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

func TestPrint(t *testing.T) {
	var out bytes.Buffer
	r := sampleReport()
	if err := r.print(&out); err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{
		"GAP OF TRAFFIC, ms PODS FLOW TAILSCALE-NRI STOCK RATIO",
		"kill9 1 in 85 (80–90) ≥20000 (20000–20000) 0.0043",
		"kill9 1 tcp 3540 (80–7000), 1 of 2 broke ≥20000",
		"kill9 1 (CPU, s) 0.3 (0.3–0.3) – –",
		"kill9 SIGKILL, started again at once",
		"with 1 pods a packet of each flow every 5ms; with nothing restarted, its longest silence in a second was 5 (5–5)",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("expected %q in\n%s", want, out.String())
		}
	}
}

// TestFailure: a connection of ours that broke fails the run, one of stock's does not.
func TestFailure(t *testing.T) {
	if err := sampleReport().failure(); err == nil || !strings.Contains(err.Error(), "kill9 of 1 pods, pod1: reset by peer") {
		t.Errorf("got %v", err)
	}
	r := newReport(events)
	broken := wellOff(ms)
	broken.broken = errors.New("reset by peer")
	r.add("stock_kill9", 1, []outcome{broken})
	if err := r.failure(); err != nil {
		t.Errorf("stock's connection: %v", err)
	}
}
