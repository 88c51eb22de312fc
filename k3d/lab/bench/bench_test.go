// SPDX-License-Identifier: BSD-3-Clause

package bench

import (
	"bytes"
	"encoding/json"
	"io"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"tailscale-nri/k3d/lab"
)

// TestRun has every part give its figures, in small. It wants no figure to be good.
func TestRun(t *testing.T) {
	var table, lines bytes.Buffer
	cfg := Config{
		Lab: lab.Config{Name: "tsnri-bt"}, Single: 1, Burst: 2, Pods: []int{1, 2}, Settle: 100 * time.Millisecond,
		Rounds: 1, Span: 200 * time.Millisecond, Table: &table, JSON: &lines,
	}
	if err := Run(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + table.String())
	got := map[string]int{}
	for dec := json.NewDecoder(&lines); ; {
		var s Series
		err := dec.Decode(&s)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got[s.Name] += len(s.Values)
	}
	for name, n := range map[string]int{
		"hook RunPodSandbox":                      3,
		"RunPodSandbox of CRI":                    3,
		"sandbox to first ping from a peer":       3,
		"size of the binary":                      1,
		"memory with 1 pods, idle":                1,
		"memory with 2 pods, idle":                1,
		"TCP, IPv4, 1 stream":                     2,
		"TCP, IPv6, 4 streams":                    2,
		"UDP, 1200 B echoed, loss":                2,
		"TCP, IPv4, 1 stream, CPU of the daemons": 2,
		"memory after the traffic":                2,
	} {
		if got[name] != n {
			t.Errorf("%q has %d values, want %d", name, got[name], n)
		}
	}
}

func TestRunRefusesPart(t *testing.T) {
	err := Run(t.Context(), Config{Only: []string{"attach", "nonsense"}})
	if err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("got %v", err)
	}
}

func TestQuantile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for _, c := range []struct {
		values []float64
		q      float64
		want   float64
	}{
		{[]float64{7}, 0.5, 7},
		{[]float64{7}, 0.99, 7},
		{[]float64{3, 1, 2}, 0.5, 2},
		{[]float64{4, 3, 2, 1}, 0.5, 2},
		{hundred, 0.5, 50},
		{hundred, 0.99, 99},
		{hundred, 1, 100},
	} {
		if got := (Series{Values: c.values}).Quantile(c.q); got != c.want {
			t.Errorf("quantile %v of %v = %v, want %v", c.q, c.values, got, c.want)
		}
	}
	if got := (Series{}).Quantile(0.5); !math.IsNaN(got) {
		t.Errorf("the median of nothing is %v", got)
	}
}

func TestReport(t *testing.T) {
	r := &report{part: "traffic", compares: true}
	r.add("speed", "two pods", "Gb/s", 3)
	r.add("loss", "two pods", "%", 0)
	r.add("speed", "two tailscaleds", "Gb/s", 1.5)
	r.add("speed", "two pods", "Gb/s", 4)
	var out bytes.Buffer
	if err := r.print(&out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	for i, want := range []string{
		"traffic OF N P50 P99 MIN MAX UNIT RATIO",
		"speed two pods 2 3 4 3 4 Gb/s",
		"speed two tailscaleds 1 1.5 1.5 1.5 1.5 Gb/s 2",
		"loss two pods 1 0 0 0 0 %",
	} {
		if got := strings.Join(strings.Fields(lines[i]), " "); got != want {
			t.Errorf("line %d is %q, want %q", i, got, want)
		}
	}
}

func TestAddHooks(t *testing.T) {
	log := `{"level":"DEBUG","msg":"hook done","event":"RunPodSandbox","took":12500000,"ok":true}
{"level":"INFO","msg":"attached","took":11000000}
no JSON
{"level":"WARN","msg":"hook done","event":"StopPodSandbox","took":600000000,"ok":true}
{"level":"DEBUG","msg":"hook done","event":"RunPodSandbox","took":2000000,"ok":false}
`
	r := &report{}
	if err := addHooks(log, r); err != nil {
		t.Fatal(err)
	}
	if len(r.series) != 2 || r.series[0].Quantile(1) != 12.5 || r.series[1].Values[0] != 600 {
		t.Errorf("read %+v", r.series)
	}
	if err := addHooks("", &report{}); err == nil {
		t.Error("a log without hooks is no error")
	}
}

func TestParseStat(t *testing.T) {
	const stat = "42 (a) b (c)) S 1 42 42 0 -1 4194304 100 0 0 0 250 50 7 7 20 0 9 0 100 1000 10 1"
	if got, err := parseStat(stat); err != nil || got != 3*time.Second {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "42 (a) S 1", "42 (a) S 1 1 1 0 0 0 0 0 0 0 x y 0"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q is no error", bad)
		}
	}
}

// TestOwnProcess reads this one.
func TestOwnProcess(t *testing.T) {
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	machineBefore, err := machineTime()
	if err != nil {
		t.Fatal(err)
	}
	for after := before; after <= before+5*tick; {
		if after, err = cpuTime(os.Getpid()); err != nil {
			t.Fatal(err)
		}
	}
	if machine, err := machineTime(); err != nil || machine < machineBefore+4*tick {
		t.Errorf("the machine was busy for %v: %v", machine-machineBefore, err)
	}
	if rss, err := residentMemory(os.Getpid()); err != nil || rss < mebibyte {
		t.Errorf("resident memory %d: %v", rss, err)
	}
	for _, err := range []error{second(cpuTime(1 << 30)), second(residentMemory(1 << 30))} {
		if err == nil {
			t.Error("a process that does not exist is no error")
		}
	}
}

func second[T any](_ T, err error) error { return err }
