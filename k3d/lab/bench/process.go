// SPDX-License-Identifier: BSD-3-Clause

package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of CPU times in /proc: USER_HZ, 100 per second on every architecture of Linux that Go knows
// (proc(5), times(2)).
const tick = time.Second / 100

// cpuTime is what the processes have used so far, in user mode and in the kernel on their behalf.
func cpuTime(pids ...int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, fmt.Errorf("reading the CPU time of process %d: %w", pid, err)
		}
		used, err := parseStat(string(stat))
		if err != nil {
			return 0, fmt.Errorf("reading the CPU time of process %d: %w", pid, err)
		}
		sum += used
	}
	return sum, nil
}

// parseStat adds utime and stime, fields 14 and 15 of /proc/PID/stat. The second field, the name in parentheses, may
// hold anything.
func parseStat(stat string) (time.Duration, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("%q is not a /proc/PID/stat", stat)
	}
	return sumTicks(fields[11:13])
}

// machineTime is what the machine was busy for so far, whoever kept it so: all of the first line of /proc/stat but
// idle and iowait. Work in softirqs, which belongs to no process, is in it.
func machineTime() (time.Duration, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("reading the machine's CPU time: %w", err)
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	fields := strings.Fields(line) // cpu user nice system idle iowait irq softirq …
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("%q is not a first line of /proc/stat", line)
	}
	return sumTicks([]string{fields[1], fields[2], fields[3], fields[6], fields[7]})
}

func sumTicks(fields []string) (sum time.Duration, err error) {
	for _, f := range fields {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}

// usage is CPU time used so far.
type usage struct{ daemons, machine time.Duration }

func readUsage(pids []int) (u usage, err error) {
	var errs [2]error
	u.daemons, errs[0] = cpuTime(pids...)
	u.machine, errs[1] = machineTime()
	return u, errors.Join(errs[:]...)
}

// memory is what processes hold, in MiB. A page that several processes have mapped counts in each one's rss, and as a
// part of it in each one's pss: processes of one binary share its text.
type memory struct{ rss, pss float64 }

// readMemory adds up Rss and Pss of /proc/PID/smaps_rollup (proc(5)).
func readMemory(pids ...int) (sum memory, err error) {
	for _, pid := range pids {
		file := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
		rollup, err := os.ReadFile(file)
		if err != nil {
			return sum, fmt.Errorf("reading the memory of process %d: %w", pid, err)
		}
		for line := range strings.Lines(string(rollup)) {
			fields := strings.Fields(line)
			if len(fields) < 2 {
				continue
			}
			kib, err := strconv.ParseFloat(fields[1], 64)
			switch {
			case fields[0] != "Rss:" && fields[0] != "Pss:":
			case err != nil:
				return sum, fmt.Errorf("reading %s: %w", file, err)
			case fields[0] == "Rss:":
				sum.rss += kib / 1024
			default:
				sum.pss += kib / 1024
			}
		}
	}
	if sum.rss == 0 {
		return sum, fmt.Errorf("processes %v hold no memory: they have ended", pids)
	}
	return sum, nil
}

// settledMemory is that of a process once it has stayed within 2 % for so long, or after ten times as long.
func settledMemory(ctx context.Context, pid int, span time.Duration) (last memory, err error) {
	const looks = 10
	var seen []float64
	for range 10 * looks {
		select {
		case <-time.After(span / looks):
		case <-ctx.Done():
			return last, ctx.Err()
		}
		if last, err = readMemory(pid); err != nil {
			return last, err
		}
		if seen = append(seen, last.rss); len(seen) < looks {
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
