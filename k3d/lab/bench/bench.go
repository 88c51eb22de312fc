// SPDX-License-Identifier: BSD-3-Clause

package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/demo"
)

// Config says what is measured, and how often.
type Config struct {
	Lab lab.Config
	// Only names the parts: attach, memory, traffic. None means all.
	Only []string
	// Single is the number of pods that are attached one after the other, Burst that of those in parallel.
	// 0 means 20.
	Single, Burst int
	// Pods are the numbers of pods at which memory is read, ascending. None means 1, 10, 20.
	Pods []int
	// Settle is how long the memory must stay as it is to be read. 0 means 5 s.
	Settle time.Duration
	// FewTags and Untagged are the plugin built with only those build tags that it refuses to run without, and with
	// none. "" leaves the comparison out.
	FewTags, Untagged string
	// Rounds of traffic; in each, both pairs take their turn at everything. 0 means 5.
	Rounds int
	// Span is how long one transfer goes on. 0 means 4 s.
	Span time.Duration
	// Table is where the result is printed, JSON where it is written a line for each series. nil drops it.
	Table, JSON io.Writer
}

func (c Config) withDefaults() Config {
	c.Single, c.Burst = cmp.Or(c.Single, 20), cmp.Or(c.Burst, 20)
	if len(c.Pods) == 0 {
		c.Pods = []int{1, 10, 20}
	}
	c.Settle = cmp.Or(c.Settle, 5*time.Second)
	c.Rounds = cmp.Or(c.Rounds, 5)
	c.Span = cmp.Or(c.Span, 4*time.Second)
	if c.Table == nil {
		c.Table = io.Discard
	}
	if c.JSON == nil {
		c.JSON = io.Discard
	}
	return c
}

// part is one part of the benchmark, on a lab of its own.
type part struct {
	name     string
	compares bool
	run      func(ctx context.Context, cfg Config, r *report) error
}

var parts = []part{{"attach", false, attach}, {"memory", true, memory}, {"traffic", true, traffic}}

func (c Config) check() error {
	for _, name := range c.Only {
		if !slices.ContainsFunc(parts, func(p part) bool { return p.name == name }) {
			return fmt.Errorf("no part is called %q: give some of attach, memory, traffic", name)
		}
	}
	return nil
}

// Run measures part by part and prints each part's result as soon as it is there.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.check(); err != nil {
		return err
	}
	cfg = cfg.withDefaults()
	for _, p := range parts {
		if len(cfg.Only) > 0 && !slices.Contains(cfg.Only, p.name) {
			continue
		}
		r := &report{part: p.name, compares: p.compares}
		if err := p.run(ctx, cfg, r); err != nil {
			return fmt.Errorf("measuring %s: %w", p.name, err)
		}
		if err := errors.Join(r.print(cfg.Table), r.encode(cfg.JSON)); err != nil {
			return fmt.Errorf("writing the result of %s: %w", p.name, err)
		}
	}
	return nil
}

// onScene runs fn on a new lab with the plugin registered and one stock tailscaled in the tailnet.
func onScene(ctx context.Context, cfg lab.Config, fn func(*demo.Scene) error) (err error) {
	scene, err := demo.Open(ctx, demo.Config{Lab: cfg})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, scene.Close(context.WithoutCancel(ctx))) }()
	if err := scene.StartPeer(ctx); err != nil {
		return err
	}
	if err := scene.StartPlugin("LOG_LEVEL=debug", "LOG_FORMAT=json"); err != nil {
		return err
	}
	if err := scene.Registered(ctx); err != nil {
		return err
	}
	if err := fn(scene); err != nil {
		log, logErr := pluginLog(scene)
		return errors.Join(fmt.Errorf("%w; the end of the plugin's log:\n%s", err, tail(log, 10)), logErr)
	}
	return nil
}

// pluginLog is all that the plugin has written; each scene starts it once.
func pluginLog(scene *demo.Scene) (string, error) {
	log, err := os.ReadFile(scene.Plugin.LogPath())
	if err != nil {
		return "", fmt.Errorf("reading the plugin's log: %w", err)
	}
	return string(log), nil
}

// tail is the last n lines that are no debug output.
func tail(text string, n int) string {
	lines := slices.DeleteFunc(strings.Split(strings.TrimSpace(text), "\n"), func(line string) bool {
		return strings.Contains(line, `"level":"DEBUG`)
	})
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
