// SPDX-License-Identifier: BSD-3-Clause

package bench

import (
	"bytes"
	"encoding/json"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/internal/quantile"
)

// TestRun has every part give its figures, in small. It wants no figure to be good.
func TestRun(t *testing.T) {
	var table, figures, lines bytes.Buffer
	cfg := Config{
		Lab: lab.Config{Name: "tsnri-bt"}, Single: 1, Burst: 2, Pods: []int{1, 2}, Settle: 100 * time.Millisecond,
		Idle: 100 * time.Millisecond, Calm: time.Millisecond,
		Rounds: 1, Span: 200 * time.Millisecond, Probe: 100 * time.Millisecond,
		Load: 200 * time.Millisecond, Watch: 100 * time.Millisecond, Table: &table, JSON: &figures, Lines: &lines,
	}
	if err := Run(t.Context(), cfg); err != nil {
		t.Fatalf("%v\n%s", err, lines.String())
	}
	t.Log("\n" + table.String())
	got := map[string]Figure{}
	for dec := json.NewDecoder(&figures); ; {
		var f Figure
		err := dec.Decode(&f)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got[f.Figure] = f
	}
	for _, name := range []string{
		"hook_p99_burst", "attach_to_first_ping_p50", "attach_to_first_ping_burst_p50",
		"tcp1_ratio", "tcp4_ratio", "tcp4_ratio/TCP4/ip=6/dir=back", "local_tcp_ratio", "udp_small_pps_ratio",
		"rr_latency_ratio", "cpu_seconds_per_gb_ratio", "memory_recovery_pods/daemon=1", "memory_recovery_stock/daemon=0",
		"memory_new/Memory/shape=mesh/pods=2", "memory_stock_each/Memory/shape=apart/pods=1",
		"idle_new/Idle/shape=apart/pods=2", "status_new/Status/shape=apart/pods=2", "status_new/Status/shape=mesh/pods=2/sessions=1",
		"idle_served/Idle/shape=mesh/pods=2",
		"scrape_identity_ms/Scrape/shape=mesh/pods=2", "scrape_gzip_KiB/Scrape/shape=apart/pods=2",
		"scrape_gzip_alloc-MiB/Scrape/shape=apart/pods=2", "scrape_identity_cpu-ms/Scrape/shape=mesh/pods=2",
	} {
		if f, ok := got[name]; !ok || math.IsNaN(f.Value) || f.Low > f.High {
			t.Errorf("figure %s is %+v", name, f)
		}
	}
	for _, line := range []string{"Unit Gb/s better=higher\n", "\nBenchmarkTCP4/ip=6/dir=back/of=stock 1 ", "\nBenchmarkHook/RunPodSandbox/of=burst 1 "} {
		if !strings.Contains(lines.String(), line) {
			t.Errorf("no %q in\n%s", line, lines.String())
		}
	}
}

func TestRunRefuses(t *testing.T) {
	for _, cfg := range []Config{{Only: []string{"attach", "nonsense"}}, {Shapes: []string{"nonsense"}}} {
		if err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "nonsense") {
			t.Errorf("got %v", err)
		}
	}
}

func TestReport(t *testing.T) {
	var lines, figures bytes.Buffer
	r := newReport(&lines)
	for _, v := range []float64{3, 4} {
		r.add("A", ofPods, measured{unitRate: v, unitCPU: 1})
		r.add("B", ofPods, measured{unitRate: 2 * v})
		r.add("A", ofStock, measured{unitRate: 2})
		r.add("B", ofStock, measured{unitRate: 2})
	}
	if want := "BenchmarkA/of=pods 1 3 Gb/s 1 cpu-s/GB\n"; !strings.HasPrefix(lines.String(), want) {
		t.Errorf("lines are %q, want %q first", lines.String(), want)
	}
	r.ratio("x", ofPods, ofStock, unitRate, "A", "B", "missing")
	r.ratio("one", ofPods, ofStock, unitRate, "B")
	r.figure("y", "A", ofPods, unitRate, 1)
	r.figure("z", "missing", ofPods, unitRate, 1)
	if err := r.write(&figures, io.Discard); err != nil {
		t.Fatal(err)
	}
	want := `{"figure":"x/A","value":1.75,"unit":"pods/stock","low":1.5,"high":2,"n":2}
{"figure":"x/B","value":3.5,"unit":"pods/stock","low":3,"high":4,"n":2}
{"figure":"x","value":2.625,"unit":"pods/stock","low":1.5,"high":4,"n":2}
{"figure":"one","value":3.5,"unit":"pods/stock","low":3,"high":4,"n":2}
{"figure":"y","value":4,"unit":"Gb/s","low":3,"high":4,"n":2}
`
	if figures.String() != want {
		t.Errorf("figures are\n%swant\n%s", figures.String(), want)
	}
}

func TestAddHooks(t *testing.T) {
	log := `{"level":"DEBUG","msg":"hook done","event":"RunPodSandbox","took":12500000,"ok":true}
{"level":"INFO","msg":"attached","took":11000000}
no JSON
{"level":"WARN","msg":"hook done","event":"StopPodSandbox","took":600000000,"ok":true}
{"level":"DEBUG","msg":"hook done","event":"RunPodSandbox","took":2000000,"ok":false}
`
	r := newReport(io.Discard)
	if err := addHooks(log, ofBurst, r); err != nil {
		t.Fatal(err)
	}
	run, stop := r.get("Hook/RunPodSandbox", ofBurst, unitMillis), r.get("Hook/StopPodSandbox", ofBurst, unitMillis)
	if len(run) != 2 || quantile.Of(run, 1) != 12.5 || len(stop) != 1 || stop[0] != 600 {
		t.Errorf("read %v and %v", run, stop)
	}
	if err := addHooks("", ofBurst, newReport(io.Discard)); err == nil {
		t.Error("a log without hooks is no error")
	}
}
