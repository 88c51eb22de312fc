// SPDX-License-Identifier: BSD-3-Clause

// Package exporter exports the measures of the program and of its nodes to Prometheus.
// All values are read at a scrape; between two scrapes nothing happens, and nothing is
// kept. It takes values and knows neither the engine nor a runtime.
package exporter

import (
	"maps"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"

	"tailscale-nri/engine/measure"
	"tailscale-nri/engine/tailnet"
)

// Process is the state of the program at one moment.
type Process struct {
	Version, TailscaleVersion, GoVersion string

	Restarts       int // by the supervisor
	Registered     bool
	StandingBy     bool
	Configured     bool
	WithoutNode    int
	LateContainers uint64
	Hooks          map[Hook]measure.Buckets

	// Engine is nil before it exists, and where it Hangs: it did not answer in time.
	Engine *measure.Engine
	Hangs  bool
	// API is nil if the tailnet is used without an API.
	API map[tailnet.Call]uint64
}

// Hook is an event of the runtime, and how it ended.
type Hook struct{ Event, Result string }

// Results of hooks.
const (
	OK      = measure.OK
	Failed  = measure.Failed
	Timeout = "timeout"
)

// NewRegistry returns a registry with all metrics. read is called once for each
// scrape.
func NewRegistry(read func() Process) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(newCollector(read), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// collector is a [prometheus.Collector].
type collector struct {
	read  func() Process
	descs map[string]*prometheus.Desc
}

func newCollector(read func() Process) *collector {
	c := &collector{read: read, descs: map[string]*prometheus.Desc{}}
	for _, f := range Families {
		c.descs[f.Name] = prometheus.NewDesc(f.Name, f.Help, f.Labels, nil)
	}
	return c
}

// Describe implements [prometheus.Collector].
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		to <- d
	}
}

// Collect implements [prometheus.Collector].
func (c *collector) Collect(to chan<- prometheus.Metric) {
	p, s := c.read(), scrape{c, to}
	s.process(&p)
	if p.Engine != nil {
		s.engine(p.Engine)
		for i := range p.Engine.Pods {
			s.pod(&p.Engine.Pods[i])
		}
	}
}

// scrape is one Collect.
type scrape struct {
	*collector
	to chan<- prometheus.Metric
}

func (s scrape) process(p *Process) {
	s.gauge(buildInfo, 1, p.Version, p.TailscaleVersion, p.GoVersion)
	s.counter(restarts, uint64(max(p.Restarts, 0)))
	s.gauge(registered, is(p.Registered))
	s.gauge(standingBy, is(p.StandingBy))
	s.gauge(configured, is(p.Configured))
	s.gauge(withoutNode, float64(p.WithoutNode))
	s.hooks(p.Hooks)
	if p.Engine != nil || p.Hangs {
		s.gauge(engineAnswers, is(!p.Hangs))
	}
	s.counter(late, p.LateContainers, byContainer)
	if p.API == nil {
		return
	}
	for _, operation := range tailnet.Operations {
		for _, result := range tailnet.Results {
			s.counter(apiCalls, p.API[tailnet.Call{Operation: operation, Result: result}], operation, result)
		}
	}
	s.counter(keysMinted, p.API[tailnet.KeyMinted])
}

// hooks writes all possible events, also those that have not come yet: increase()
// misses the first event of a series that begins with it.
func (s scrape) hooks(by map[Hook]measure.Buckets) {
	none, all := (&measure.Histogram{Bounds: measure.HookBounds}).Buckets(), map[Hook]measure.Buckets{}
	for _, event := range events {
		for _, result := range hookResults {
			all[Hook{event, result}] = none
		}
	}
	maps.Copy(all, by)
	for hook, b := range all {
		s.histogram(hooks, b, hook.Event, hook.Result)
	}
}

func (s scrape) engine(e *measure.Engine) {
	s.gauge(unanswered, float64(e.Unanswered))
	for state, n := range e.Nodes {
		s.gauge(nodes, float64(n), state)
	}
	for stage, b := range e.Stages {
		s.histogram(stages, b, stage)
	}
	s.histogram(ready, e.Ready)
	s.counter(late, e.LateAttaches, byList)
	s.counter(sessionRestarts, e.Restarts)
	s.counters(registrations, e.Registrations)
	s.counters(deleted, e.DevicesDeleted)
	s.counters(sweeps, e.Sweeps)
	s.gauge(sweepDue, float64(e.SweepDue))
}

// sample is a [prometheus.Metric]. Those of the library make all label pairs again for
// each metric: with many pods that is most of the cost of a scrape.
type sample struct {
	desc   *prometheus.Desc
	labels []*dto.LabelPair // sorted by name
	kind   string
	value  float64
}

// Desc implements [prometheus.Metric].
func (m *sample) Desc() *prometheus.Desc { return m.desc }

// Write implements [prometheus.Metric].
func (m *sample) Write(out *dto.Metric) error {
	out.Label = m.labels
	if m.kind == Counter {
		out.Counter = &dto.Counter{Value: &m.value}
	} else {
		out.Gauge = &dto.Gauge{Value: &m.value}
	}
	return nil
}

func (s scrape) gauge(f Family, v float64, values ...string) {
	s.to <- &sample{s.descs[f.Name], pairs(f, values), Gauge, v}
}

func (s scrape) counter(f Family, v uint64, values ...string) {
	s.to <- &sample{s.descs[f.Name], pairs(f, values), Counter, float64(v)}
}

func (s scrape) counters(f Family, by map[string]uint64) {
	for value, n := range by {
		s.counter(f, n, value)
	}
}

func (s scrape) histogram(f Family, b measure.Buckets, values ...string) {
	s.to <- prometheus.MustNewConstHistogram(s.descs[f.Name], b.Count, b.Sum, b.Cumulative, values...)
}

// pairs returns the labels of a family with these values, sorted by name as a registry
// needs them.
func pairs(f Family, values []string) []*dto.LabelPair {
	out := make([]*dto.LabelPair, len(values))
	for i := range values {
		out[i] = pair(f.Labels[i], values[i])
	}
	return sorted(out)
}

func pair(name, value string) *dto.LabelPair {
	value = strings.ToValidUTF8(value, "\uFFFD")
	return &dto.LabelPair{Name: &name, Value: &value}
}

func is(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
