// SPDX-License-Identifier: BSD-3-Clause

package metrics

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tailscale-nri/engine/exporter"
	"tailscale-nri/engine/measure"
	"tailscale-nri/engine/tailnet"
	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

// startMetrics serves metrics until the test ends and returns the address.
func startMetrics(t *testing.T, addr string, read func() exporter.Process) (at string) {
	t.Helper()
	listens := make(chan string, 1)
	s := &Server{Addr: addr, Read: read, Log: slog.New(slog.DiscardHandler), retry: 10 * time.Millisecond, listen: listens}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := plugintest.Receive(t, done, "the end of Run"); err != nil {
			t.Error(err)
		}
	})
	return plugintest.Receive(t, listens, "metrics")
}

// get asks the address and returns what it answers.
func get(t *testing.T, method, url string) (code int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

// /metrics is served, and nothing else is, by no other method.
func TestMetricsServer(t *testing.T) {
	h := &statussocket.Health{}
	m := New(h, 3)
	at := startMetrics(t, "127.0.0.1:0", m.Read)
	for _, tt := range []struct {
		method, path string
		code         int
	}{
		{"GET", "/metrics", 200}, {"HEAD", "/metrics", 200}, {"POST", "/metrics", 405},
		{"GET", "/", 404}, {"GET", "/status", 404}, {"GET", "/debug/pprof/", 404}, {"GET", "/metrics/x", 404},
	} {
		if code, body := get(t, tt.method, "http://"+at+tt.path); code != tt.code {
			t.Errorf("%s %s: %d, want %d: %s", tt.method, tt.path, code, tt.code, body)
		}
	}
	_, body := get(t, "GET", "http://"+at+"/metrics")
	for _, want := range []string{"tailscale_nri_supervisor_restarts_total 3", "tailscale_nri_registered 0", "process_resident_memory_bytes ", "go_goroutines "} {
		if !strings.Contains(body, "\n"+want) {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(body, "tailscale_nri_nodes") {
		t.Error("there are nodes without an engine")
	}
}

// The process that ends has the port for as long as both are there in a roll: the
// next one waits for it, and serves its pods meanwhile.
func TestMetricsPortIsTaken(t *testing.T) {
	first, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(100*time.Millisecond, func() { first.Close() })
	at := startMetrics(t, first.Addr().String(), New(&statussocket.Health{}, 0).Read)
	if code, _ := get(t, "GET", "http://"+at+"/metrics"); code != 200 {
		t.Errorf("%d", code)
	}
}

// A scrape that hangs takes one of two places and not the process: others are
// answered that there is none.
func TestScrapesAreBounded(t *testing.T) {
	release, asked := make(chan struct{}), make(chan struct{}, scrapeConns)
	at := startMetrics(t, "127.0.0.1:0", func() exporter.Process {
		asked <- struct{}{}
		<-release
		return exporter.Process{}
	})
	defer close(release)
	for range scrapesAtOnce {
		go func() {
			if res, err := http.Get("http://" + at + "/metrics"); err == nil {
				res.Body.Close()
			}
		}()
		plugintest.Receive(t, asked, "a scrape")
	}
	if code, body := get(t, "GET", "http://"+at+"/metrics"); code != 503 || !strings.Contains(body, "Limit") {
		t.Errorf("%d: %s", code, body)
	}
}

// A scrape of an engine that hangs has all that the process knows by itself, and
// says that it hangs. However many scrapes there are, it is asked once.
func TestMetricsWhileTheEngineHangs(t *testing.T) {
	h := &statussocket.Health{}
	h.Connect()(nil)
	m := New(h, 0)
	var asked atomic.Int64
	release := make(chan struct{})
	m.Serves(func() measure.Engine {
		asked.Add(1)
		<-release
		return measure.Engine{SweepDue: 7}
	}, func() map[tailnet.Call]uint64 { return nil })
	at := startMetrics(t, "127.0.0.1:0", m.Read)
	var wg sync.WaitGroup
	for range scrapesAtOnce {
		wg.Go(func() {
			code, body := get(t, "GET", "http://"+at+"/metrics")
			for _, want := range []string{"registered 1", "engine_answers 0", `hook_duration_seconds_count{event="RunPodSandbox",result="ok"} 0`} {
				if code != 200 || !strings.Contains(body, "\ntailscale_nri_"+want+"\n") {
					t.Errorf("%d, no %s in\n%s", code, want, body)
				}
			}
		})
	}
	wg.Wait()
	if n := asked.Load(); n != 1 {
		t.Errorf("the engine was asked %d times, want once", n)
	}
	close(release)
	for deadline := time.Now().Add(plugintest.Patience); ; {
		if p := m.Read(); p.Engine != nil && p.Engine.SweepDue == 7 && !p.Hangs {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the engine answers, and a scrape does not say so")
		}
	}
}

// What cannot be shown of one pod hides nothing of the others.
func TestMetricsSurviveOneBadSeries(t *testing.T) {
	twice := []measure.Pod{{Namespace: "default", Name: "web"}, {Namespace: "default", Name: "web"}, {Namespace: "default", Name: "db", Up: true}}
	at := startMetrics(t, "127.0.0.1:0", func() exporter.Process { return exporter.Process{Engine: &measure.Engine{Pods: twice}} })
	code, body := get(t, "GET", "http://"+at+"/metrics")
	if code != 200 || !strings.Contains(body, `tailscale_nri_pod_up{namespace="default",pod="db"} 1`) {
		t.Errorf("%d: %s", code, body)
	}
}

func TestMetricsAddr(t *testing.T) {
	for _, tt := range []struct {
		value, addr string
		bad, all    bool
	}{
		{value: ""},
		{value: "127.0.0.1:9464", addr: "127.0.0.1:9464"},
		{value: "[::1]:9464", addr: "[::1]:9464"},
		{value: ":9464", addr: ":9464", all: true},
		{value: "0.0.0.0:9464", addr: "0.0.0.0:9464", all: true},
		{value: "[::]:9464", addr: "[::]:9464", all: true},
		{value: "[::ffff:0.0.0.0]:9464", addr: "[::ffff:0.0.0.0]:9464", all: true},
		{value: "9464", bad: true},
		{value: "127.0.0.1", bad: true},
		{value: "127.0.0.1:0", bad: true},
		{value: "127.0.0.1:metrics", bad: true},
		{value: "localhost:9464", bad: true},
		{value: "127.0.0.1:99999", bad: true},
	} {
		c, err := config.Read(plugintest.Environment(map[string]string{settings.AuthKey: "k", settings.MetricsAddr: tt.value}))
		if bad := err != nil; bad != tt.bad || c.MetricsAddr != tt.addr {
			t.Errorf("%q: %q, %v", tt.value, c.MetricsAddr, err)
		}
		if tt.bad && !plugintest.ErrContains(err, settings.MetricsAddr+` is "`+tt.value+`": write an address`) {
			t.Errorf("%q: %v", tt.value, err)
		}
		if everywhere(tt.value) != tt.all {
			t.Errorf("%q is on all addresses: %v", tt.value, !tt.all)
		}
	}
}

// Metrics that nobody asked for are not there.
func TestNoMetricsUnlessAsked(t *testing.T) {
	c, err := config.Read(plugintest.Environment(map[string]string{settings.AuthKey: "k"}))
	if err != nil || c.MetricsAddr != "" {
		t.Errorf("%q, %v", c.MetricsAddr, err)
	}
}
