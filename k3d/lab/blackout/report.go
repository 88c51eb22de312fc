// SPDX-License-Identifier: BSD-3-Clause

package blackout

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"tailscale-nri/k3d/lab/internal/quantile"
)

// The three flows of a node, as figures name them.
var flowNames = []string{"in", "out", "tcp"}

// figure is all that was measured of one flow in one event.
type figure struct {
	Name   string
	values []float64 // ms, over rounds and pods
	open   int       // how many of values are gaps that had not ended
	broken int       // connections that did not survive
}

func (f *figure) add(s silence) {
	f.values = append(f.values, math.Round(float64(s.gap)/float64(time.Millisecond)*10)/10)
	if s.open {
		f.open++
	}
}

func (f *figure) median() float64 { return quantile.Of(f.values, 0.5) }

// line is a figure in blackout.json. Value is the median over rounds and pods, null if a connection broke.
type line struct {
	Name  string   `json:"name"`
	Value *float64 `json:"value"`
	Unit  string   `json:"unit"`
	N     int      `json:"n"`
	Min   float64  `json:"min"`
	Max   float64  `json:"max"`
	// Open is how many of N had not ended when the time watched did, and so are lower bounds.
	Open     int   `json:"open,omitempty"`
	Survived *bool `json:"survived,omitempty"` // false, or not there
	Broken   int   `json:"broken,omitempty"`   // connections
}

func (f *figure) line() line {
	l := line{Name: f.Name, Unit: "ms", N: len(f.values), Min: slices.Min(f.values), Max: slices.Max(f.values), Open: f.open}
	if f.broken > 0 {
		l.Survived, l.Broken = new(bool), f.broken
		return l
	}
	median := f.median()
	l.Value = &median
	return l
}

// report collects the figures.
type report struct {
	events   []event
	scales   []scale // in their order
	figures  map[string]*figure
	calm     map[scale]*figure  // the longest silence of each flow before anything happened
	cpu      map[string]*figure // of the new processes, in s, by event and pods
	problems []string           // connections of pods that did not survive, and why
	lastText string
	loadThen string
}

func newReport(wanted []event) *report {
	return &report{
		events: wanted, figures: map[string]*figure{}, calm: map[scale]*figure{}, cpu: map[string]*figure{}, loadThen: load(),
	}
}

func (r *report) figure(of string, flow string, pods int) *figure {
	name := fmt.Sprintf("%s_%s_ms_%d", of, flow, pods)
	if r.figures[name] == nil {
		r.figures[name] = &figure{Name: name}
	}
	return r.figures[name]
}

// add records one turn.
func (r *report) add(of string, pods int, all []outcome) {
	var turn [3]figure
	for _, o := range all {
		for i, s := range []silence{o.in, o.out, o.tcp} {
			r.figure(of, flowNames[i], pods).add(s)
			turn[i].add(s)
		}
		if o.broken == nil {
			continue
		}
		r.figure(of, "tcp", pods).broken++
		if !strings.HasPrefix(of, "stock_") {
			r.problems = append(r.problems, fmt.Sprintf("%s of %d pods, %s: %v", of, pods, o.name, o.broken))
		}
	}
	r.lastText = fmt.Sprintf("in %s, out %s, tcp %s", turn[0].text(), turn[1].text(), turn[2].text())
}

// last is the latest turn in words.
func (r *report) last() string { return r.lastText }

func (r *report) addCalm(sc scale, all []outcome) {
	if !slices.Contains(r.scales, sc) {
		r.scales, r.calm[sc] = append(r.scales, sc), &figure{}
	}
	for _, o := range all {
		for _, s := range []silence{o.in, o.out, o.tcp} {
			r.calm[sc].add(s)
		}
	}
}

// addCPU records what the processes that were started have used until the end of the time watched.
func (r *report) addCPU(of string, pods int, used time.Duration) {
	f := r.cpuOf(of, pods)
	f.values = append(f.values, used.Seconds())
}

func (r *report) cpuOf(of string, pods int) *figure {
	name := fmt.Sprintf("%s_%d", of, pods)
	if r.cpu[name] == nil {
		r.cpu[name] = &figure{}
	}
	return r.cpu[name]
}

// failure says which connections of pods did not survive.
func (r *report) failure() error {
	if len(r.problems) == 0 {
		return nil
	}
	const shown = 5
	return fmt.Errorf("%d TCP connections of pods did not survive, such as:\n%s", len(r.problems),
		strings.Join(r.problems[:min(shown, len(r.problems))], "\n"))
}

// text is median (min–max), with ≥ if that many gaps were open that the median is one of them.
func (f *figure) text() string {
	if len(f.values) == 0 {
		return "–"
	}
	text := fmt.Sprintf("%s (%s–%s)", number(f.median()), number(slices.Min(f.values)), number(slices.Max(f.values)))
	if 2*f.open > len(f.values) {
		text = "≥" + text
	}
	if f.broken > 0 {
		text += fmt.Sprintf(", %d of %d broke", f.broken, len(f.values))
	}
	return text
}

// number has two significant digits, as many as can be told apart here, and no fewer than the integer has.
func number(v float64) string {
	if v >= 10 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2g", v)
}

// print writes the table and what one needs to read it.
func (r *report) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "GAP OF TRAFFIC, ms\tPODS\tFLOW\tTAILSCALE-NRI\tSTOCK\tRATIO")
	for _, e := range r.events {
		for _, sc := range r.scales {
			for _, flow := range flowNames {
				row(w, e.name, sc.pods, flow, r.figure(e.name, flow, sc.pods), r.figure("stock_"+e.name, flow, sc.pods))
			}
			if e.restarts {
				row(w, e.name, sc.pods, "(CPU, s)", r.cpuOf(e.name, sc.pods), r.cpuOf("stock_"+e.name, sc.pods))
			}
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprint(out, "\nMedian (smallest–largest) over all rounds and pods; ratio is tailscale-nri over stock; ≥ where it had not ended.\n\n")
	w = tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	for _, e := range r.events {
		fmt.Fprintf(w, "%s\t%s\n", e.name, e.text)
	}
	fmt.Fprint(w, "in\tdatagrams from the peer to the pod: the longest time without one\n"+
		"out\tthe same from the pod to the peer\n"+
		"tcp\tone connection, written to from both ends: the longer silence of the two; TCP's own pauses are part of it\n"+
		"(CPU, s)\twhat all processes that were started have used until all was well again, or the outage over\n")
	for _, sc := range r.scales {
		fmt.Fprintf(w, "resolution\twith %d pods a packet of each flow every %v; with nothing restarted, its longest silence in a second was %s\n",
			sc.pods, sc.every, r.calm[sc].text())
	}
	fmt.Fprintf(w, "machine\t%d CPUs, Linux %s, load %s before, %s after\n", runtime.NumCPU(), kernel(), r.loadThen, load())
	return w.Flush()
}

func row(w io.Writer, event string, pods int, flow string, ours, stock *figure) {
	ratio := "–"
	if len(ours.values) > 0 && len(stock.values) > 0 && stock.median() > 0 {
		ratio = number(ours.median() / stock.median())
	}
	fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", event, pods, flow, ours.text(), stock.text(), ratio)
}

// encode writes a line of JSON for each figure that was measured.
func (r *report) encode(out io.Writer) error {
	enc := json.NewEncoder(out)
	for _, prefix := range []string{"", "stock_"} {
		for _, e := range r.events {
			for _, flow := range flowNames {
				for _, sc := range r.scales {
					if f := r.figure(prefix+e.name, flow, sc.pods); len(f.values) > 0 {
						if err := enc.Encode(f.line()); err != nil {
							return fmt.Errorf("writing %s: %w", f.Name, err)
						}
					}
				}
			}
		}
	}
	return nil
}

// load is the machine's load average of the last minute.
func load() string {
	text, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(text), " ")
	return first
}

func kernel() string {
	text, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return strings.TrimSpace(string(text))
}
