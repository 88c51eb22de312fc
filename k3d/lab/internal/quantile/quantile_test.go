// SPDX-License-Identifier: BSD-3-Clause

package quantile

import (
	"testing"
	"time"
)

func TestOf(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for _, c := range []struct {
		values []float64
		q      float64
		want   float64
	}{
		{[]float64{7}, 0.5, 7},
		{[]float64{7}, 0.99, 7},
		{[]float64{3, 1, 2}, 0.5, 2},
		{[]float64{4, 3, 2, 1}, 0.5, 2.5},
		{[]float64{1, 9, 4, 2}, 0.5, 3},
		{hundred, 0, 1},
		{hundred, 0.5, 50.5},
		{hundred, 0.99, 99},
		{hundred, 1, 100},
	} {
		if got := Of(c.values, c.q); got != c.want {
			t.Errorf("quantile %v of %v = %v, want %v", c.q, c.values, got, c.want)
		}
	}
	if got := Of([]time.Duration{3, 1}, 0.5); got != 2 {
		t.Errorf("the median of 1 ns and 3 ns is %v", got)
	}
}
