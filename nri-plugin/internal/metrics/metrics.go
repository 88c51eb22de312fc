// SPDX-License-Identifier: BSD-3-Clause

// Package metrics counts what this process does and serves that, with what the engine
// measures, to Prometheus.
//
// It pushes nothing, keeps no history, and names no metric: package exporter does.
package metrics

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
	"tailscale.com/tstime"

	"tailscale-nri/engine/exporter"
	"tailscale-nri/engine/measure"
	"tailscale-nri/engine/tailnet"
	"tailscale-nri/nri-plugin/internal/buildinfo"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

// Meters are this process's own measurements. Without a scraper the cost is an
// addition for each hook.
type Meters struct {
	health         *statussocket.Health
	itself         exporter.Process // what does not change
	hooks          measure.Set[exporter.Hook, measure.Histogram]
	lateContainers atomic.Uint64 // pods that were attached when a container was created

	mu     sync.Mutex
	engine func() measure.Engine // nil until there is an engine
	calls  func() map[tailnet.Call]uint64
	asked  *question // that the engine has not answered yet, nil if there is none
}

// question is a pending question to the engine; answer is set once done is closed.
type question struct {
	done   chan struct{}
	answer measure.Engine
}

// askPatience is far above what the engine needs, and below [scrapeTimeout].
const askPatience = 5 * time.Second

// ask asks the engine for what it measures, and returns nil if there is none or it
// has not answered in time. One that hangs is asked once, however many scrapes
// there are.
func (m *Meters) ask() (e *measure.Engine, hangs bool) {
	m.mu.Lock()
	q, engine := m.asked, m.engine
	if q == nil && engine != nil {
		q = &question{done: make(chan struct{})}
		m.asked = q
		go func() {
			q.answer = engine()
			m.mu.Lock()
			defer m.mu.Unlock()
			m.asked = nil
			close(q.done)
		}()
	}
	m.mu.Unlock()
	if q == nil {
		return nil, false
	}
	select {
	case <-q.done:
		return &q.answer, false
	case <-time.After(askPatience):
		return nil, true
	}
}

// New measures a process that was started again this often.
func New(h *statussocket.Health, restarts int) *Meters {
	return &Meters{health: h, itself: exporter.Process{
		Version: buildinfo.Version(), TailscaleVersion: buildinfo.ModuleVersion("tailscale.com"), GoVersion: runtime.Version(),
		Restarts: restarts,
	}}
}

// Serves notes that there is an engine, and how many calls its tailnets' APIs have had.
func (m *Meters) Serves(engine func() measure.Engine, calls func() map[tailnet.Call]uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.engine, m.calls = engine, calls
}

// Hook counts an event of the runtime. A nil m counts none.
func (m *Meters) Hook(event, result string, took time.Duration) {
	if m == nil {
		return
	}
	m.hooks.Of(exporter.Hook{Event: event, Result: result}, func(h *measure.Histogram) { h.Bounds = measure.HookBounds }).Observe(took)
}

// Late counts a pod that had started without its node. A nil m counts none.
func (m *Meters) Late() {
	if m != nil {
		m.lateContainers.Add(1)
	}
}

// HookResult is the result of an event that ended with err.
func HookResult(err error) string {
	switch {
	case err == nil:
		return exporter.OK
	case errors.Is(err, context.DeadlineExceeded):
		return exporter.Timeout
	}
	return exporter.Failed
}

// Read returns all measurements.
func (m *Meters) Read() exporter.Process {
	p := m.itself
	p.LateContainers, p.Hooks = m.lateContainers.Load(), map[exporter.Hook]measure.Buckets{}
	p.Registered, p.StandingBy, p.Configured = m.health.Measures()
	p.WithoutNode = len(m.health.WithoutNode())
	m.hooks.Each(func(hook exporter.Hook, times *measure.Histogram) { p.Hooks[hook] = times.Buckets() })
	p.Engine, p.Hangs = m.ask()
	m.mu.Lock()
	calls := m.calls
	m.mu.Unlock()
	if calls != nil {
		p.API = calls()
	}
	return p
}

// Bounds of what a scraper may take of this process.
const (
	scrapesAtOnce    = 2
	scrapeConns      = 8
	scrapeTimeout    = 10 * time.Second // Prometheus' own default
	scrapeReadTime   = 5 * time.Second
	scrapeIdle       = 2 * time.Minute // between two scrapes on one connection
	scrapeHeaderSize = 16 << 10
)

// metricsRetry is the pause between two tries to listen.
const metricsRetry = 2 * time.Second

// Server answers GET /metrics. It has neither encryption nor authentication, and so
// listens where it is told to and nowhere else.
type Server struct {
	Addr string // host:port
	Read func() exporter.Process
	Log  *slog.Logger

	retry  time.Duration // 0 is metricsRetry
	listen chan<- string // gets the address once it listens; nil for none
}

// Run serves until ctx is done and returns nil. Where it cannot listen it tries
// again: in a roll the ending process has the port for as long as both
// run. No pod loses its node for that.
func (s *Server) Run(ctx context.Context) error {
	if everywhere(s.Addr) {
		s.Log.Warn("metrics are served on all addresses of this host, to anyone who reaches them: names of pods and tailnet regions, no secrets",
			"setting", settings.MetricsAddr, "addr", s.Addr)
	}
	said := ""
	for ctx.Err() == nil {
		ln, err := net.Listen("tcp", s.Addr)
		if err == nil {
			err = s.serve(ctx, ln)
			said = ""
		}
		if ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			s.Log.Warn("metrics cannot be served, trying again; in a roll the other process still has the port", "err", err)
		}
		tstime.Sleep(ctx, cmp.Or(s.retry, metricsRetry))
	}
	return nil
}

func (s *Server) serve(ctx context.Context, ln net.Listener) error {
	s.Log.Info("serving metrics", "addr", ln.Addr().String())
	if s.listen != nil {
		s.listen <- ln.Addr().String()
	}
	srv := &http.Server{
		Handler:           metricsHandler(s.Read, s.Log),
		ReadHeaderTimeout: scrapeReadTime, ReadTimeout: scrapeReadTime,
		WriteTimeout: scrapeTimeout + scrapeReadTime, IdleTimeout: scrapeIdle,
		MaxHeaderBytes: scrapeHeaderSize,
		ErrorLog:       slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	if err := srv.Serve(netutil.LimitListener(ln, scrapeConns)); ctx.Err() == nil {
		return fmt.Errorf("serving metrics: %w", err)
	}
	return nil
}

// metricsHandler answers GET /metrics and nothing else.
func metricsHandler(read func() exporter.Process, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(exporter.NewRegistry(read), promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError, // one bad series is not to hide all others
		MaxRequestsInFlight: scrapesAtOnce,
		Timeout:             scrapeTimeout,
	}))
	return mux
}

// everywhere reports whether the address is all of this host's.
func everywhere(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "" || err == nil && ip.Unmap().IsUnspecified()
}
