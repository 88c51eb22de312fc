// SPDX-License-Identifier: BSD-3-Clause

package blackout

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/internal/wait"
)

// Config says what is measured, and how often.
type Config struct {
	// Lab is that of the pods; the stock tailscaleds get another one, with "-stock" to its name and directory.
	Lab lab.Config
	// Pods is the greater number of pods; the other one is 1. 0 means 50, 1 leaves it out.
	Pods int
	// Rounds of each event with one pod, ManyRounds with many. 0 means 5 and 3.
	Rounds, ManyRounds int
	// Every is the time between two packets of a flow with many pods. 0 means 20 ms.
	Every time.Duration
	// Events names the ones wanted: kill9, term, containerd, control. None means all.
	Events []string
	// OursOnly leaves the stock tailscaleds out.
	OursOnly bool
	// Table is where the result is printed, JSON where a line for each figure is written. nil drops it.
	Table, JSON io.Writer
	// Logs is a directory that the plugin's log is copied to in the end. "" copies nothing.
	Logs string
	// Logger logs each turn; nil logs nothing.
	Logger *slog.Logger
}

const (
	oneEvery  = 5 * time.Millisecond  // between two packets of a flow, with one pod
	manyEvery = 20 * time.Millisecond // with many

	// watchAtLeast is for how long an event is watched at least: a handshake of WireGuard that was lost is tried again after
	// 5 s.
	watchAtLeast = 6 * time.Second
	// patience bounds what must happen in the end. It is not an expectation: TCP's own pauses double up to half a minute.
	patience = 3 * time.Minute
)

func (c Config) withDefaults() Config {
	c.Pods = cmp.Or(c.Pods, 50)
	c.Rounds, c.ManyRounds = cmp.Or(c.Rounds, 5), cmp.Or(c.ManyRounds, 3)
	c.Every = cmp.Or(c.Every, manyEvery)
	if c.Table == nil {
		c.Table = io.Discard
	}
	if c.JSON == nil {
		c.JSON = io.Discard
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// wanted are the events in their order.
func (c Config) wanted() ([]event, error) {
	for _, name := range c.Events {
		if !slices.ContainsFunc(events, func(e event) bool { return e.name == name }) {
			return nil, fmt.Errorf("no event is called %q: give some of kill9, term, containerd, control", name)
		}
	}
	if len(c.Events) == 0 {
		return events, nil
	}
	return slices.DeleteFunc(slices.Clone(events), func(e event) bool { return !slices.Contains(c.Events, e.name) }), nil
}

// Run measures, prints, and removes all that it made. What was measured before an error is printed as well. A TCP
// connection of a pod that did not survive is an error.
func Run(ctx context.Context, cfg Config) error {
	cfg = cfg.withDefaults()
	wanted, err := cfg.wanted()
	if err != nil {
		return err
	}
	r := newReport(wanted)
	err = measure(ctx, cfg, wanted, r)
	return errors.Join(err, r.print(cfg.Table), r.encode(cfg.JSON), r.failure())
}

func measure(ctx context.Context, cfg Config, wanted []event, r *report) (err error) {
	sides, err := openSides(ctx, cfg)
	defer func() {
		for _, s := range sides {
			err = errors.Join(err, s.close())
		}
	}()
	if err != nil {
		return err
	}
	if cfg.Logs != "" {
		defer func() { err = errors.Join(err, sides[0].keepLog(cfg.Logs)) }()
	}
	if err := measureWith(ctx, cfg, sides, wanted, scale{1, cfg.Rounds, oneEvery}, r); err != nil || cfg.Pods == 1 {
		return err
	}
	return measureWith(ctx, cfg, sides, wanted, scale{cfg.Pods, cfg.ManyRounds, cfg.Every}, r)
}

func openSides(ctx context.Context, cfg Config) (sides []*side, err error) {
	s, err := openOurs(ctx, cfg.Lab)
	if err != nil {
		return nil, err
	}
	sides = append(sides, s)
	if cfg.OursOnly {
		return sides, nil
	}
	other := cfg.Lab
	other.Name = cmp.Or(other.Name, "tsnri") + "-stock"
	if other.Dir != "" {
		other.Dir += "-stock"
	}
	if s, err = openStock(ctx, other); err != nil {
		return sides, err
	}
	return append(sides, s), nil
}

// scale is how much traffic there is.
type scale struct {
	pods, rounds int
	every        time.Duration
}

// measureWith runs all rounds of a scale. The sides take turns, and change who is first: what else goes on in the
// machine meets both.
func measureWith(ctx context.Context, cfg Config, sides []*side, wanted []event, sc scale, r *report) error {
	for _, s := range sides {
		if err := s.grow(ctx, sc); err != nil {
			return err
		}
	}
	turns := slices.Clone(sides)
	for round := range sc.rounds {
		for _, e := range wanted {
			for _, s := range turns {
				if err := s.turn(ctx, e, sc, r); err != nil {
					return fmt.Errorf("%s%s with %d pods, round %d: %w", s.prefix, e.name, sc.pods, round+1, err)
				}
				cfg.Logger.Info("measured", "what", s.prefix+e.name, "pods", sc.pods, "round", round+1, "gaps", r.last())
			}
		}
		slices.Reverse(turns)
	}
	return nil
}

// turn has one event happen to one side under traffic.
func (s *side) turn(ctx context.Context, e event, sc scale, r *report) error {
	t, err := s.openWell(ctx, sc)
	if err != nil {
		return err
	}
	defer t.close()
	from := t.now()
	r.addCalm(sc, t.outcomes(from-calm, from))
	until, err := s.watch(ctx, e, t)
	if err != nil {
		return err
	}
	if e.restarts {
		r.addCPU(s.prefix+e.name, sc.pods, cpuTime(s.nodes.pids()))
	}
	if e.after != nil {
		if err := e.after(ctx, s); err != nil {
			return err
		}
	}
	if t.awaitWell(ctx) != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		t.giveUp()
	}
	r.add(s.prefix+e.name, sc.pods, t.outcomes(from, until))
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return s.nodes.settled(ctx)
}

// openWell returns traffic that has been well for the time that calm looks back.
func (s *side) openWell(ctx context.Context, sc scale) (*traffic, error) {
	opening, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	t, err := openTraffic(opening, s.peer, s.places, sc.every)
	if err != nil {
		return nil, err
	}
	if err := t.awaitWell(ctx); err != nil {
		t.close()
		return nil, fmt.Errorf("before anything happened, on a machine that may have more to do than it can: %w", err)
	}
	if err := wait.Pause(ctx, calm); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

// watch lets the event happen and returns the moment up to which it is watched.
func (s *side) watch(ctx context.Context, e event, t *traffic) (until time.Duration, err error) {
	begin := t.now()
	happening, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := e.run(happening, s); err != nil || e.after != nil {
		return t.now(), err
	}
	if err := wait.Pause(ctx, watchAtLeast-(t.now()-begin)); err != nil {
		return 0, err
	}
	_ = t.awaitWell(ctx) // a flow that is not well by then has a gap that is open
	return t.now(), nil
}
