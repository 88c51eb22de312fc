// SPDX-License-Identifier: BSD-3-Clause

package exporter

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"tailscale-nri/engine/measure"
	"tailscale-nri/engine/tailnet"
)

// full is a process with all values, and some pods.
func full(pods int) Process {
	h := measure.Histogram{Bounds: measure.AttachBounds}
	h.Observe(20 * time.Millisecond)
	e := &measure.Engine{
		Nodes:  map[string]int{"Pending": 0, "Running": pods, "Stopped": 0, "Leaving": 0},
		Stages: map[string]measure.Buckets{}, Ready: h.Buckets(),
		Registrations: map[string]uint64{}, DevicesDeleted: map[string]uint64{}, Sweeps: map[string]uint64{},
	}
	for _, stage := range measure.Stages {
		e.Stages[stage] = h.Buckets()
	}
	for _, k := range measure.Registrations {
		e.Registrations[k] = 1
	}
	for _, k := range measure.Deletions {
		e.DevicesDeleted[k] = 1
	}
	for _, k := range measure.Results {
		e.Sweeps[k] = 1
	}
	for i := range pods {
		e.Pods = append(e.Pods, measure.Pod{
			Namespace: "default", Name: fmt.Sprintf("web-%d", i), Up: true, HasNode: true, Served: true,
			Written: [measure.Files]uint64{measure.RecordFile: 9},
			Traffic: [measure.Paths][measure.Directions]measure.Traffic{
				measure.Direct: {{Packets: 1, Bytes: 2}, {Packets: 3, Bytes: 4}},
				measure.DERP:   {{Packets: 5, Bytes: 6}, {Packets: 7, Bytes: 8}},
			},
			Drops: []measure.Drop{
				{Direction: measure.In, Reason: "acl", Packets: 1},
				{Direction: measure.Out, Reason: "error", Packets: 1}, {Direction: measure.Out, Reason: measure.Malformed},
			},
			Control: true, Answered: true, HomeDERP: "fra", Peers: 200, Sessions: 20,
			Oldest: time.Unix(1, 0), Newest: time.Unix(2, 0), KeyExpiry: time.Unix(3, 0),
		})
	}
	return Process{
		Version: "v1", TailscaleVersion: "v1.2", GoVersion: "go1", Registered: true, Configured: true,
		Hooks:  map[Hook]measure.Buckets{{"RunPodSandbox", OK}: h.Buckets()},
		Engine: e, API: map[tailnet.Call]uint64{tailnet.KeyMinted: 3},
	}
}

// TestFamilies: what is exported is what is listed, with the labels and the kind,
// and Prometheus' own linter has nothing to say of it.
func TestFamilies(t *testing.T) {
	families, err := NewRegistry(func() Process { return full(2) }).Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), Prefix) {
			continue
		}
		got[f.GetName()] = true
		i := slices.IndexFunc(Families, func(known Family) bool { return known.Name == f.GetName() })
		if i < 0 {
			t.Errorf("%s is not listed", f.GetName())
			continue
		}
		if kind := strings.ToLower(f.GetType().String()); kind != Families[i].Kind {
			t.Errorf("%s is a %s, listed as %s", f.GetName(), kind, Families[i].Kind)
		}
		want := slices.Sorted(slices.Values(Families[i].Labels))
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetName())
				if may := Values(Families[i], l.GetName()); may != nil && !slices.Contains(may, l.GetValue()) {
					t.Errorf("%s has %s=%q, listed are %q", f.GetName(), l.GetName(), l.GetValue(), may)
				}
			}
			if !slices.Equal(labels, want) {
				t.Errorf("%s has the labels %v, listed are %v", f.GetName(), labels, want)
			}
		}
	}
	for _, f := range Families {
		if !got[f.Name] {
			t.Errorf("%s is listed and not exported", f.Name)
		}
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, Prefix) {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// A pod without a node has only the series that it is not up. Without an engine
// nodes have no series. Names that are not UTF-8 do not end the scrape.
func TestLessIsKnown(t *testing.T) {
	p := full(0)
	p.Engine.Pods = []measure.Pod{{Namespace: "default", Name: "new\xff"}}
	lines := scrapeOf(t, p)
	var ofPods []string
	for _, line := range lines {
		if strings.Contains(line, `namespace="`) {
			ofPods = append(ofPods, line)
		}
	}
	if want := []string{`tailscale_nri_pod_up{namespace="default",pod="new` + "\uFFFD" + `"} 0`}; !slices.Equal(ofPods, want) {
		t.Errorf("got %q, want %q", ofPods, want)
	}
	p.Engine, p.API, p.Registered = nil, nil, false
	for _, line := range scrapeOf(t, p) {
		if strings.HasPrefix(line, nodes.Name) || strings.HasPrefix(line, keysMinted.Name) {
			t.Errorf("without an engine: %s", line)
		}
	}
}

// Values arrive as they are, and where they belong.
func TestValues(t *testing.T) {
	lines := scrapeOf(t, full(1))
	for _, want := range []string{
		`tailscale_nri_pod_bytes_total{direction="in",namespace="default",path="direct",pod="web-0"} 2`,
		`tailscale_nri_pod_packets_total{direction="out",namespace="default",path="derp",pod="web-0"} 7`,
		`tailscale_nri_pod_handshake_timestamp_seconds{namespace="default",of="oldest",pod="web-0"} 1`,
		`tailscale_nri_pod_key_expiry_timestamp_seconds{namespace="default",pod="web-0"} 3`,
		`tailscale_nri_pod_dropped_packets_total{direction="in",namespace="default",pod="web-0",reason="acl"} 1`,
		`tailscale_nri_pod_disk_written_bytes_total{file="record",namespace="default",pod="web-0"} 9`,
		`tailscale_nri_pod_disk_written_bytes_total{file="netmap",namespace="default",pod="web-0"} 0`,
		`tailscale_nri_nodes{state="Leaving"} 0`,
		`tailscale_nri_auth_keys_minted_total 3`,
		`tailscale_nri_hook_duration_seconds_bucket{event="RunPodSandbox",result="ok",le="0.025"} 1`,
		`tailscale_nri_ready_duration_seconds_sum 0.02`,
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("no line %s", want)
		}
	}
}

// Events that have not happened yet have the value 0: increase() misses the first event
// of a series that begins with it.
func TestZerosAreThere(t *testing.T) {
	p := Process{API: map[tailnet.Call]uint64{{Operation: "token", Result: "ok"}: 2}}
	lines := scrapeOf(t, p)
	for _, want := range []string{
		`tailscale_nri_hook_duration_seconds_count{event="RunPodSandbox",result="timeout"} 0`,
		`tailscale_nri_hook_duration_seconds_bucket{event="CreateContainer",result="error",le="2"} 0`,
		`tailscale_nri_api_requests_total{operation="mint_key",result="refused"} 0`,
		`tailscale_nri_api_requests_total{operation="token",result="ok"} 2`,
		`tailscale_nri_auth_keys_minted_total 0`,
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("no line %s", want)
		}
	}
}

func scrapeOf(t *testing.T, p Process) []string {
	t.Helper()
	rec := httptest.NewRecorder()
	handler(func() Process { return p }).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if rec.Code != http.StatusOK {
		t.Fatalf("%d: %s", rec.Code, rec.Body)
	}
	return strings.Split(rec.Body.String(), "\n")
}

func handler(read func() Process) http.Handler {
	return promhttp.HandlerFor(NewRegistry(read), promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError})
}

// Many scrapes at once.
func TestConcurrentScrapes(t *testing.T) {
	r := NewRegistry(func() Process { return full(20) })
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() {
			_, err := r.Gather()
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestHistogram(t *testing.T) {
	h := measure.Histogram{Bounds: []float64{.1, 1}}
	for _, d := range []time.Duration{-time.Second, 100 * time.Millisecond, 101 * time.Millisecond, 2 * time.Second} {
		h.Observe(d)
	}
	b := h.Buckets()
	if want := map[float64]uint64{.1: 2, 1: 3}; !maps.Equal(b.Cumulative, want) || b.Count != 4 || b.Sum != 2.201 {
		t.Errorf("got %+v", b)
	}
}

// BenchmarkScrape is one scrape of a host with 200 pods, from the values on.
func BenchmarkScrape(b *testing.B) {
	p := full(200)
	h := handler(func() Process { return p })
	for _, encoding := range []string{"identity", "gzip"} { // the second is what Prometheus asks for
		req := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		req.Header.Set("Accept-Encoding", encoding)
		b.Run(encoding, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				w := &discard{header: http.Header{}}
				h.ServeHTTP(w, req)
				b.ReportMetric(float64(w.n), "body-B")
			}
		})
	}
}

// BenchmarkIdle measures the cost of metrics without a scrape.
func BenchmarkIdle(b *testing.B) {
	h := measure.Histogram{Bounds: measure.HookBounds}
	b.ReportAllocs()
	for b.Loop() {
		h.Observe(time.Millisecond)
	}
}

type discard struct {
	header http.Header
	n      int
}

func (d *discard) Header() http.Header { return d.header }
func (d *discard) WriteHeader(int)     {}
func (d *discard) Write(p []byte) (int, error) {
	d.n += len(p)
	return io.Discard.Write(p)
}

var _ prometheus.Collector = (*collector)(nil)
