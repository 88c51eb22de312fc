// SPDX-License-Identifier: BSD-3-Clause

package bench

import (
	"context"
	"errors"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"tailscale-nri/k3d/lab/internal/proc"
	"tailscale-nri/k3d/lab/internal/wait"
)

// usage is CPU time used so far.
type usage struct{ daemons, machine time.Duration }

func readUsage(pids []int) (u usage, err error) {
	var errs [2]error
	u.daemons, errs[0] = proc.CPUTime(pids...)
	u.machine, errs[1] = proc.MachineTime()
	return u, errors.Join(errs[:]...)
}

// settledMemory is that of a process once it has stayed within 2 % for so long, or after ten times as long.
func settledMemory(ctx context.Context, pid int, span time.Duration) (last proc.Memory, err error) {
	const looks = 10
	var seen []float64
	for range 10 * looks {
		if err := wait.Pause(ctx, span/looks); err != nil {
			return last, err
		}
		if last, err = proc.ReadMemory(pid); err != nil {
			return last, err
		}
		if seen = append(seen, last.RSS); len(seen) < looks {
			continue
		}
		late := seen[len(seen)-looks:]
		if low, high := slices.Min(late), slices.Max(late); high-low <= low/50 {
			break
		}
	}
	return last, nil
}

// receiveRoom is how many bytes of packets a socket may hold that nobody has read yet: what the machine lets any
// process have (socket(7)), 4 MiB at most.
func receiveRoom() int {
	limit, err := os.ReadFile("/proc/sys/net/core/rmem_max")
	if err != nil {
		return 208 << 10 // the kernel's default
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(limit)))
	if err != nil {
		return 208 << 10
	}
	return min(n, 4<<20)
}

func geometricMean(a, b float64) float64 { return math.Sqrt(a * b) }
