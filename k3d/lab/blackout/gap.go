// SPDX-License-Identifier: BSD-3-Clause

package blackout

import (
	"slices"
	"sync"
	"time"
)

// arrivals are the moments at which something of one flow came, ascending, on the clock of its traffic.
type arrivals struct {
	mu sync.Mutex
	at []time.Duration
}

func (a *arrivals) add(at time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at = append(a.at, at)
}

// silence is a gap, and whether it had not ended yet.
type silence struct {
	gap  time.Duration
	open bool
}

// longest is the longest time between two arrivals of which the later one came in (from, until]. The end of the time
// watched counts as an arrival, and leaves the gap open if it is the longest.
func (a *arrivals) longest(from, until time.Duration) (s silence) {
	a.mu.Lock()
	defer a.mu.Unlock()
	first, _ := slices.BinarySearch(a.at, from+1)
	last := from
	if first > 0 {
		last = a.at[first-1]
	}
	for _, at := range a.at[first:] {
		if at > until {
			break
		}
		s.gap = max(s.gap, at-last)
		last = at
	}
	if until-last > s.gap {
		s = silence{until - last, true}
	}
	return s
}

// longer of two.
func longer(a, b silence) silence {
	if b.gap > a.gap {
		return b
	}
	return a
}
