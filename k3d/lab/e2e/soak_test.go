// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"os"
	"strconv"
	"testing"
	"time"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/soak"
)

// TestSoak has 200 pods come and go while plugin, containerd, control plane and API fail around them, and wants nothing
// of them to be left. SEED draws another plan.
func TestSoak(t *testing.T) {
	t.Parallel()
	seed := uint64(1)
	if s := os.Getenv("SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("SEED=%q is not a number: %v", s, err)
		}
	}
	cfg := soak.Config{
		Lab: config(t, "soak"), Cycles: 200, Seed: seed, Bound: 170 * time.Second, Out: t.Output(),
	}
	result, err := soak.Run(t.Context(), cfg)
	result.Print(t.Output(), seed)
	if n := len(result.Leaks) + len(result.Failures); err != nil || n > 0 {
		t.Errorf("seed %d: %d leaks and failures: %v", seed, n, err)
	}
	if left, err := lab.Remains(cfg.Lab); err != nil || len(left) > 0 {
		t.Errorf("left after the test: %q, %v", left, err)
	}
}
