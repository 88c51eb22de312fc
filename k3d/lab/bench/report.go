// SPDX-License-Identifier: BSD-3-Clause

package bench

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"text/tabwriter"
)

// Series is what was measured of one thing.
type Series struct {
	Part   string    `json:"part"`
	Name   string    `json:"name"` // what was measured
	Of     string    `json:"of"`   // whose it is
	Unit   string    `json:"unit"`
	Values []float64 `json:"values"` // in the order in which they were measured
}

// Quantile is the smallest value that a share q of all values does not exceed, 0 < q <= 1; NaN without values.
func (s Series) Quantile(q float64) float64 {
	if len(s.Values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s.Values))
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

// report collects the series of one part.
type report struct {
	part     string
	compares bool // whether the series of one name are of rivals
	series   []*Series
}

// add puts a value to the series of that name and owner, which is new if there is none.
func (r *report) add(name, of, unit string, value float64) {
	i := slices.IndexFunc(r.series, func(s *Series) bool { return s.Name == name && s.Of == of })
	if i < 0 {
		i = len(r.series)
		r.series = append(r.series, &Series{Part: r.part, Name: name, Of: of, Unit: unit})
	}
	r.series[i].Values = append(r.series[i].Values, value)
}

// print writes a table. Where series are compared, each has the first one's median over its own as its ratio.
func (r *report) print(out io.Writer) error {
	r.sort()
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s\tOF\tN\tP50\tP99\tMIN\tMAX\tUNIT\tRATIO\n", r.part)
	for i, s := range r.series {
		ratio := ""
		if r.compares && i > 0 && r.series[i-1].Name == s.Name {
			ratio = number(r.series[r.first(s.Name)].Quantile(0.5) / s.Quantile(0.5))
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Name, s.Of, len(s.Values), number(s.Quantile(0.5)),
			number(s.Quantile(0.99)), number(slices.Min(s.Values)), number(slices.Max(s.Values)), s.Unit, ratio)
	}
	fmt.Fprintln(w)
	return w.Flush()
}

// sort brings the series of a name together, where the first of them stands.
func (r *report) sort() {
	place := make(map[string]int)
	for i, s := range r.series {
		if _, ok := place[s.Name]; !ok {
			place[s.Name] = i
		}
	}
	slices.SortStableFunc(r.series, func(a, b *Series) int { return cmp.Compare(place[a.Name], place[b.Name]) })
}

func (r *report) first(name string) int {
	return slices.IndexFunc(r.series, func(s *Series) bool { return s.Name == name })
}

// number has three significant digits, as many as can be told apart here, and no fewer than the integer has.
func number(v float64) string {
	if math.Abs(v) >= 100 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

// encode writes a line of JSON for each series.
func (r *report) encode(out io.Writer) error {
	enc := json.NewEncoder(out)
	for _, s := range r.series {
		line := struct {
			*Series
			P50 float64 `json:"p50"`
			P99 float64 `json:"p99"`
		}{s, s.Quantile(0.5), s.Quantile(0.99)}
		if err := enc.Encode(line); err != nil {
			return err
		}
	}
	return nil
}
