// SPDX-License-Identifier: BSD-3-Clause

package soak

import (
	"fmt"
	"testing"

	"tailscale-nri/k3d/lab/control"
)

// TestPlan: the seed alone decides, and 200 cycles have some of everything.
func TestPlan(t *testing.T) {
	for seed := range uint64(50) {
		p := makePlan(seed, 200)
		if fmt.Sprint(p) != fmt.Sprint(makePlan(seed, 200)) {
			t.Fatalf("seed %d makes two plans", seed)
		}
		if fmt.Sprint(p) == fmt.Sprint(makePlan(seed+1, 200)) {
			t.Fatalf("seeds %d and %d make one plan", seed, seed+1)
		}
		seen := map[string]int{}
		for _, c := range p.cycles {
			seen[c.kind.String()]++
		}
		for _, s := range shares {
			if seen[s.kind.String()] == 0 {
				t.Errorf("seed %d: no pod that %v", seed, s.kind)
			}
		}
		for _, e := range p.events {
			seen[fmt.Sprint(e.lane)]++
			if e.lane == plugin && e.at >= 150 {
				t.Errorf("seed %d: %v, in the last quarter", seed, e)
			}
			if e.lane == tailnet && e.outage == control.Up && !e.fault.Hang && e.fault.Status == 0 {
				t.Errorf("seed %d: %v, which is no fault", seed, e)
			}
		}
		for l := range lanes {
			if seen[fmt.Sprint(l)] < 3 {
				t.Errorf("seed %d: %d events of lane %d", seed, seen[fmt.Sprint(l)], l)
			}
		}
	}
}
