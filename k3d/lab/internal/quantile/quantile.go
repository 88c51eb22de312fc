// SPDX-License-Identifier: BSD-3-Clause

// Package quantile has the one definition of a quantile for all that the lab measures.
package quantile

import (
	"math"
	"slices"
)

// Of is the smallest value that a share q of all values does not exceed; the median of an even number of values is the
// mean of the middle two. 0 <= q <= 1. There must be a value.
func Of[T ~int64 | ~float64](values []T, q float64) T {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if q == 0.5 && n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[max(0, int(math.Ceil(q*float64(n)))-1)]
}
