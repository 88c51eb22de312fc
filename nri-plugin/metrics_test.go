// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"io"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"tailscale-nri/engine/measure"
	"tailscale-nri/engine/tailnet"
	"tailscale-nri/nri-plugin/internal/metrics"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/status"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

// What the process says of itself is what its health says.
func TestMetricsOfHealth(t *testing.T) {
	h := &statussocket.Health{}
	m := metrics.New(h, 0)
	expect := func(when string, registered, standingBy, configured bool) {
		t.Helper()
		p := m.Read()
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
	if n := m.Read().WithoutNode; n != 2 {
		t.Errorf("%d pods without a node, want 2", n)
	}
	if m.Read().Engine != nil || m.Read().API != nil {
		t.Error("there is an engine")
	}
	static, err := tailnet.NewStatic(tailnet.StaticConfig{AuthKey: "k"})
	if err != nil {
		t.Fatal(err)
	}
	m.Serves(func() measure.Engine { return measure.Engine{SweepDue: 7} }, tailnets{main: static}.calls)
	if p := m.Read(); p.Engine == nil || p.Engine.SweepDue != 7 || p.API != nil {
		t.Errorf("with an engine and a static key: %+v", p)
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
