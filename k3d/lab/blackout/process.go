// SPDX-License-Identifier: BSD-3-Clause

package blackout

import (
	"time"

	"tailscale-nri/k3d/lab/internal/proc"
)

// cpuTime is what the processes have used so far, without those that have ended.
func cpuTime(pids []int) (sum time.Duration) {
	for _, pid := range pids {
		if used, err := proc.CPUTime(pid); err == nil {
			sum += used
		}
	}
	return sum
}
