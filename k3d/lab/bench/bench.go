// SPDX-License-Identifier: BSD-3-Clause

package bench

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"tailscale-nri/k3d/lab"
)

// Config says what is measured, and how often.
type Config struct {
	Lab lab.Config
	// Only names the parts: attach, traffic, recovery, memory, scrape. None means all.
	Only []string
	// Single is the number of pods that are attached one after the other, Burst that of those in parallel.
	// 0 means 20.
	Single, Burst int
	// Pods are the numbers of pods at which memory is read, ascending; scrapes are measured at the last of them. None
	// means 1, 10, 50, 100, 200.
	Pods []int
	// Shapes are the tailnets in which memory is read and scrapes are measured: "mesh", where all nodes see each other, and "apart", where none
	// sees another. None means both.
	Shapes []string
	// Before is another build of the plugin, to compare the memory with. "" leaves it out.
	Before string
	// Settle is how long the memory must stay as it is to be read. 0 means 5 s.
	Settle time.Duration
	// Idle is how long the CPU time of an idle plugin is counted. 0 means one minute.
	Idle time.Duration
	// Calm is how long the plugin is left alone before that: when pods have joined, their nodes go on learning about
	// each other for a while. 0 means one minute.
	Calm time.Duration
	// Rounds of traffic; in each, all pairs take their turn at everything. 0 means 5.
	Rounds int
	// Span is how long one transfer goes on, Probe one rate of small packets. 0 means 4 s and 1 s.
	Span, Probe time.Duration
	// Load is how long traffic goes on before memory has to recover, Watch how long it is watched afterwards.
	// 0 means one and two minutes.
	Load, Watch time.Duration
	// Profiles is a directory for profiles of the plugin, which has to be built with the tag "profile": of its CPU during
	// the first round of traffic, and of its heap. "" takes none.
	Profiles string
	// Table is where the figures are printed, JSON where they are written a line for each, and Lines where each single
	// measurement goes, in Go's benchmark format. nil drops it.
	Table, JSON, Lines io.Writer
}

func (c Config) withDefaults() Config {
	c.Single, c.Burst = cmp.Or(c.Single, 20), cmp.Or(c.Burst, 20)
	if len(c.Pods) == 0 {
		c.Pods = []int{1, 10, 50, 100, 200}
	}
	if len(c.Shapes) == 0 {
		c.Shapes = []string{shapeMesh, shapeApart}
	}
	c.Settle, c.Idle, c.Calm = cmp.Or(c.Settle, 5*time.Second), cmp.Or(c.Idle, time.Minute), cmp.Or(c.Calm, time.Minute)
	c.Rounds = cmp.Or(c.Rounds, 5)
	c.Span, c.Probe = cmp.Or(c.Span, 4*time.Second), cmp.Or(c.Probe, time.Second)
	c.Load, c.Watch = cmp.Or(c.Load, time.Minute), cmp.Or(c.Watch, 2*time.Minute)
	for _, w := range []*io.Writer{&c.Table, &c.JSON, &c.Lines} {
		if *w == nil {
			*w = io.Discard
		}
	}
	return c
}

// part is one part of the benchmark, on labs of its own.
type part struct {
	name string
	run  func(ctx context.Context, cfg Config, r *report) error
}

var parts = []part{{"attach", attach}, {"traffic", traffic}, {"recovery", recovery}, {"memory", memoryOver}, {"scrape", scrapeCost}}

// Parts are the names that Config.Only takes.
func Parts() (names []string) {
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}

func (c Config) check() error {
	for _, name := range c.Only {
		if !slices.Contains(Parts(), name) {
			return fmt.Errorf("no part is called %q: give some of %s", name, strings.Join(Parts(), ", "))
		}
	}
	for _, shape := range c.Shapes {
		if shape != shapeMesh && shape != shapeApart {
			return fmt.Errorf("no shape is called %q: give %s or %s", shape, shapeMesh, shapeApart)
		}
	}
	return nil
}

// Run measures part by part and prints each part's figures as soon as they are there.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.check(); err != nil {
		return err
	}
	if err := lookIperf(); err != nil {
		return err
	}
	cfg = cfg.withDefaults()
	head(cfg.Lines)
	for _, p := range parts {
		if len(cfg.Only) > 0 && !slices.Contains(cfg.Only, p.name) {
			continue
		}
		r := newReport(cfg.Lines)
		err := p.run(ctx, cfg, r)
		if err := r.write(cfg.JSON, cfg.Table); err != nil {
			return fmt.Errorf("writing the result of %s: %w", p.name, err)
		}
		if err != nil {
			return fmt.Errorf("measuring %s: %w", p.name, err)
		}
	}
	return nil
}
