// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"

	"tailscale-nri/engine/exporter"
	"tailscale-nri/engine/measure"
	"tailscale-nri/engine/tailnet"
	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/status"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

// startMetrics serves metrics until the test ends and returns the address.
func startMetrics(t *testing.T, addr string, read func() exporter.Process) (at string) {
	t.Helper()
	listens := make(chan string, 1)
	s := &metricsServer{addr: addr, read: read, log: slog.New(slog.DiscardHandler), retry: 10 * time.Millisecond, listen: listens}
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
	m := newMeters(h, 3)
	at := startMetrics(t, "127.0.0.1:0", m.read)
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

// What the process says of itself is what its health says.
func TestMetricsOfHealth(t *testing.T) {
	h := &statussocket.Health{}
	m := newMeters(h, 0)
	expect := func(when string, registered, standingBy, configured bool) {
		t.Helper()
		p := m.read()
		if p.Registered != registered || p.StandingBy != standingBy || p.Configured != configured {
			t.Errorf("%s: registered %v, standing by %v, configured %v", when, p.Registered, p.StandingBy, p.Configured)
		}
	}
	expect("at first", false, false, true)
	h.Become(statussocket.Misconfigured, "no credentials")
	expect("misconfigured", false, false, false)
	h.StandBy(func() string { return "" })
	expect("standing by", false, true, true)
	h.Connect()(nil)
	expect("registered", true, false, true)
	h.Note("a changed configuration is not used")
	expect("a bad change", true, false, false)
	h.Disconnected("gone", true)
	expect("disconnected", false, false, false)
	h.Warns(func() []status.Node { return make([]status.Node, 2) })
	if n := m.read().WithoutNode; n != 2 {
		t.Errorf("%d pods without a node, want 2", n)
	}
	if m.read().Engine != nil || m.read().API != nil {
		t.Error("there is an engine")
	}
	static, err := tailnet.NewStatic(tailnet.StaticConfig{AuthKey: "k"})
	if err != nil {
		t.Fatal(err)
	}
	m.serves(func() measure.Engine { return measure.Engine{SweepDue: 7} }, tailnets{main: static}.calls)
	if p := m.read(); p.Engine == nil || p.Engine.SweepDue != 7 || p.API != nil {
		t.Errorf("with an engine and a static key: %+v", p)
	}
}

// Each event counts once, under its result; one that hangs is a timeout.
func TestMetricsOfHooks(t *testing.T) {
	h := &statussocket.Health{}
	p := &plugin{log: slog.New(slog.DiscardHandler), meters: newMeters(h, 0)}
	sb := &api.PodSandbox{Id: "s", Name: "web", Namespace: "default"}
	for _, end := range []func(context.Context) error{
		func(context.Context) error { return nil },
		func(context.Context) error { return nil },
		func(context.Context) error { return errors.New("refused") },
		func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_ = p.hook(ctx, "RunPodSandbox", sb, end)
		cancel()
	}
	var got []string
	for hook, b := range p.meters.read().Hooks {
		got = append(got, fmt.Sprintf("%s %s %d", hook.Event, hook.Result, b.Count))
	}
	slices.Sort(got)
	if want := []string{"RunPodSandbox error 1", "RunPodSandbox ok 2", "RunPodSandbox timeout 1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
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
	at := startMetrics(t, first.Addr().String(), newMeters(&statussocket.Health{}, 0).read)
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
	m := newMeters(h, 0)
	var asked atomic.Int64
	release := make(chan struct{})
	m.serves(func() measure.Engine {
		asked.Add(1)
		<-release
		return measure.Engine{SweepDue: 7}
	}, tailnets{}.calls)
	at := startMetrics(t, "127.0.0.1:0", m.read)
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
		if p := m.read(); p.Engine != nil && p.Engine.SweepDue == 7 && !p.Hangs {
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

// freePort is an address that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// awaitMetrics waits until a scrape has all of these lines.
func (p *program) awaitMetrics(t *testing.T, addr string, want ...string) {
	t.Helper()
	var body string
	for deadline := time.Now().Add(plugintest.Patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if res, err := http.Get("http://" + addr + "/metrics"); err == nil {
			text, _ := io.ReadAll(res.Body)
			res.Body.Close()
			body = string(text)
		}
		if !slices.ContainsFunc(want, func(line string) bool { return !strings.Contains(body, "\ntailscale_nri_"+line+"\n") }) {
			return
		}
	}
	t.Fatalf("no scrape has %q; the last one:\n%s\n%s", want, body, p.book)
}

// The program, as it is: what it serves on the port follows it through a
// registration, a restart by its supervisor and a roll, in which the next process
// waits for the port and for nothing else.
func TestMetricsOfTheProgram(t *testing.T) {
	dir, addr := t.TempDir(), freePort(t)
	metered := func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, settings.MetricsAddr+"="+addr) }
	first := serving(t, dir, metered)
	first.awaitMetrics(t, addr, "registered 0", "standing_by 0", "configuration_valid 1", `nodes{state="Running"} 0`, "supervisor_restarts_total 0")
	plugintest.StartRuntimeProcess(t, dir)
	first.awaitMetrics(t, addr, "registered 1", `hook_duration_seconds_count{event="Synchronize",result="ok"} 1`)
	first.signal(t, first.only(t), syscall.SIGKILL)
	first.awaitMetrics(t, addr, "registered 1", "supervisor_restarts_total 1")

	second := begin(t, dir, metered, twice(dir))
	second.await(t, "standing by", 1)
	second.await(t, "metrics cannot be served, trying again", 1)
	second.awaitReady(t, 0, "standing by")
	first.end(t, syscall.SIGTERM)
	second.awaitMetrics(t, addr, "registered 1", "standing_by 0", "supervisor_restarts_total 0")
	if second.book.Count("level=ERROR") != 0 || second.book.Count("metrics cannot be served") != 1 {
		t.Errorf("the log\n%s", second.book)
	}
}

// One that waits for a good configuration says so there as well, and one on all
// addresses that it is.
func TestMetricsWithoutConfiguration(t *testing.T) {
	dir, config, addr := t.TempDir(), t.TempDir(), freePort(t)
	_, port, _ := net.SplitHostPort(addr)
	p := begin(t, dir, configured(config), func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, settings.MetricsAddr+"=:"+port) })
	p.awaitMetrics(t, addr, "registered 0", "configuration_valid 0")
	p.await(t, "metrics are served on all addresses of this host", 1)
	plugintest.MountConfig(t, config, settings.AuthKey, "tskey-auth-"+plugintest.Secret)
	p.awaitMetrics(t, addr, "configuration_valid 1", `nodes{state="Pending"} 0`)
}
