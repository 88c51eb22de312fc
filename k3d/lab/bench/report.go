// SPDX-License-Identifier: BSD-3-Clause

package bench

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"

	"tailscale-nri/k3d/lab/internal/quantile"
)

// Units, as benchstat wants them: the file's head says which is better.
const (
	unitRate      = "Gb/s"
	unitPackets   = "packets/s"
	unitMillis    = "ms"
	unitMicros    = "us"
	unitTail      = "p99-us"
	unitCPU       = "cpu-s/GB"
	unitMachine   = "machine-cpu-s/GB"
	unitRSS       = "RSS-MiB"
	unitPSS       = "PSS-MiB"
	unitEach      = "KiB/pod"
	unitIdle      = "millicores"
	unitBytes     = "answer-B"
	unitBody      = "KiB"
	unitAllocated = "alloc-MiB"
	unitScrapeCPU = "cpu-ms"
)

var higherIsBetter = []string{unitRate, unitPackets}

// Figure is one of the results, a line of bench.json.
type Figure struct {
	Figure string  `json:"figure"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	// Low and High are the extremes of what Value was taken from: of the rounds' own ratios, where it is a ratio.
	Low  float64 `json:"low"`
	High float64 `json:"high"`
	N    int     `json:"n"`
}

// report writes each measurement as a line in Go's benchmark format, for benchstat, and keeps it for the figures. Its
// method add may be called concurrently.
type report struct {
	lines   io.Writer
	mu      sync.Mutex
	values  map[string][]float64
	figures []Figure
	err     error // the first of writing
}

func newReport(lines io.Writer) *report { return &report{lines: lines, values: map[string][]float64{}} }

// head tells benchstat what the lines are.
func head(lines io.Writer) {
	fmt.Fprintf(lines, "goos: %s\ngoarch: %s\npkg: tailscale-nri/k3d/lab/bench\n", runtime.GOOS, runtime.GOARCH)
	for _, unit := range higherIsBetter {
		fmt.Fprintf(lines, "Unit %s better=higher\n", unit)
	}
}

func (r *report) printf(format string, args ...any) {
	_, err := fmt.Fprintf(r.lines, format, args...)
	r.err = cmp.Or(r.err, err)
}

// measured is one measurement, by unit.
type measured map[string]float64

// add takes what was measured of one thing; of says whose it is, and is what benchstat compares.
func (r *report) add(name, of string, m measured) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.printf("Benchmark%s/of=%s 1", name, of)
	for _, unit := range slices.Sorted(maps.Keys(m)) {
		r.printf(" %.6g %s", m[unit], unit)
		key := strings.Join([]string{name, of, unit}, "|")
		r.values[key] = append(r.values[key], m[unit])
	}
	r.printf("\n")
}

func (r *report) get(name, of, unit string) []float64 {
	return r.values[strings.Join([]string{name, of, unit}, "|")]
}

// figure is a quantile of what was measured; nothing where nothing was.
func (r *report) figure(figure, name, of, unit string, q float64) {
	values := r.get(name, of, unit)
	if len(values) == 0 {
		return
	}
	r.figures = append(r.figures, Figure{figure, quantile.Of(values, q), unit, slices.Min(values), slices.Max(values), len(values)})
}

// ratio is the median of the names' ratios, each of which is that of two medians and gets a line of its own if there are
// several. What is compared was measured in turns.
func (r *report) ratio(figure, of, over, unit string, names ...string) {
	var all Figure
	var ratios []float64
	for _, name := range names {
		a, b := r.get(name, of, unit), r.get(name, over, unit)
		if len(a) == 0 || len(b) == 0 {
			continue
		}
		f := Figure{figure + "/" + name, quantile.Of(a, 0.5) / quantile.Of(b, 0.5), of + "/" + over, math.Inf(1), math.Inf(-1), len(a)}
		for i := range min(len(a), len(b)) {
			f.Low, f.High = min(f.Low, a[i]/b[i]), max(f.High, a[i]/b[i])
		}
		if all.N == 0 {
			all = f
		}
		all.Low, all.High, all.N = min(all.Low, f.Low), max(all.High, f.High), f.N
		ratios = append(ratios, f.Value)
		if len(names) > 1 {
			r.figures = append(r.figures, f)
		}
	}
	if len(ratios) > 0 {
		all.Figure, all.Value = figure, quantile.Of(ratios, 0.5)
		r.figures = append(r.figures, all)
	}
}

// more is by how much the resident memory of one exceeds that of another, for each of the pods.
func (r *report) more(figure, of, over, name string, pods int) {
	a, b := r.get(name, of, unitRSS), r.get(name, over, unitRSS)
	if len(a) == 0 || len(b) == 0 {
		return
	}
	each := (quantile.Of(a, 0.5) - quantile.Of(b, 0.5)) * 1024 / float64(pods)
	r.figures = append(r.figures, Figure{figure, each, unitEach, each, each, len(a)})
}

// write prints the figures as JSON, one in a line, and as a table.
func (r *report) write(lines, table io.Writer) error {
	enc := json.NewEncoder(lines)
	for _, f := range r.figures {
		if err := enc.Encode(f); err != nil {
			return fmt.Errorf("writing figure %s: %w", f.Figure, err)
		}
		_, err := fmt.Fprintf(table, "%-52s %9.4g %-12s %.4g to %.4g, n=%d\n", f.Figure, f.Value, f.Unit, f.Low, f.High, f.N)
		r.err = errors.Join(r.err, err)
	}
	return r.err
}
