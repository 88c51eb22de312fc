// SPDX-License-Identifier: BSD-3-Clause

package soak

import (
	"context"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// processStats is what the plugin's serving process has.
type processStats struct {
	goroutines  map[string]int // by what created them
	descriptors map[string]int // by what they are, without numbers
	threads     int
	memory      int64 // VmRSS, bytes
}

// What a process may have more than one that has just served a few pods: connections that are kept for the next call,
// timers that run out; threads that Go keeps once it had use for them; memory of WireGuard's buffers, which is up to
// that much more after a burst of pods, and is given back some time after the collection that an idle process has every
// two minutes (runtime/proc.go, forcegcperiod).
const (
	slackGoroutines  = 16
	slackDescriptors = 12
	slackThreads     = 16
	slackMemory      = 160 << 20

	collected = 150 * time.Second
)

// serving is the process that serves: the plugin's child if there is one.
func (r *run) serving() int { return r.process.Load().Serving() }

// count counts what the process has, and ends it: the Go runtime lists goroutines on a SIGQUIT. Before that it waits,
// for as long as a collection may take to come, until the process has no more than base and slack.
func (r *run) count(ctx context.Context, base *processStats) (c processStats, err error) {
	deadline := time.Now().Add(collected)
	for {
		c, err = look(r.serving())
		if err != nil || base == nil || len(c.above(*base)) == 0 || time.Now().After(deadline) {
			break
		}
		pause(ctx, 200*time.Millisecond)
	}
	if err != nil {
		return c, err
	}
	c.goroutines, err = r.goroutines(ctx)
	return c, err
}

// look counts what can be seen from outside.
func look(pid int) (processStats, error) {
	c := processStats{descriptors: map[string]int{}}
	p, err := procfs.NewProc(pid)
	if err != nil {
		return c, fmt.Errorf("looking at the plugin: %w", err)
	}
	targets, err := p.FileDescriptorTargets()
	if err != nil {
		return c, fmt.Errorf("counting the plugin's descriptors: %w", err)
	}
	for _, target := range targets {
		if target != "" { // else it has been closed since
			c.descriptors[digits.ReplaceAllString(target, "")]++
		}
	}
	stat, err := p.Stat()
	if err != nil {
		return c, fmt.Errorf("reading the plugin's status: %w", err)
	}
	c.threads, c.memory = stat.NumThreads, int64(stat.ResidentMemory())
	return c, nil
}

var (
	digits    = regexp.MustCompile(`[0-9]+`)
	createdBy = regexp.MustCompile(`(?m)^created by (\S+)`)
)

// goroutines ends the serving process and reads the goroutines that it lists in its log.
func (r *run) goroutines(ctx context.Context) (map[string]int, error) {
	pid, log := r.serving(), r.process.Load().LogPath()
	before, err := os.Stat(log)
	if err != nil {
		return nil, fmt.Errorf("counting goroutines: %w", err)
	}
	if err := unix.Kill(pid, unix.SIGQUIT); err != nil {
		return nil, fmt.Errorf("counting the goroutines of process %d: %w", pid, err)
	}
	if err := eventually(ctx, func(context.Context) error { return r.gone(pid) }); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(log)
	if err != nil {
		return nil, fmt.Errorf("counting goroutines: %w", err)
	}
	count := map[string]int{}
	for _, m := range createdBy.FindAllSubmatch(text[before.Size():], -1) {
		count[string(m[1])]++
	}
	if len(count) == 0 {
		return nil, fmt.Errorf("process %d was asked for its goroutines and has listed none", pid)
	}
	return count, nil
}

// above names what there is more of than base and slack allow.
func (c processStats) above(base processStats) (more []string) {
	note := func(what string, is, was, slack int, names []string) {
		if is > was+slack {
			more = append(more, fmt.Sprintf("the plugin has %d %s, after warming up it had %d, and %d are its slack %s", is, what, was,
				slack, strings.Join(names, "; ")))
		}
	}
	note("goroutines", sum(c.goroutines), sum(base.goroutines), slackGoroutines, grown(base.goroutines, c.goroutines))
	note("descriptors", sum(c.descriptors), sum(base.descriptors), slackDescriptors, grown(base.descriptors, c.descriptors))
	note("threads", c.threads, base.threads, slackThreads, nil)
	note("MiB of memory", int(c.memory>>20), int(base.memory>>20), slackMemory>>20, nil)
	return more
}

func (c processStats) String() string {
	s := fmt.Sprintf("%d descriptors, %d threads, %d MiB", sum(c.descriptors), c.threads, c.memory>>20)
	if c.goroutines != nil { // they were counted
		s = fmt.Sprintf("%d goroutines, ", sum(c.goroutines)) + s
	}
	return s
}

func sum(count map[string]int) (n int) {
	for c := range maps.Values(count) {
		n += c
	}
	return n
}

// grown lists what there is more of than before.
func grown(before, after map[string]int) (names []string) {
	for name, n := range after {
		if n > before[name] {
			names = append(names, fmt.Sprintf("%+d %s", n-before[name], name))
		}
	}
	slices.Sort(names)
	return names
}
