// SPDX-License-Identifier: BSD-3-Clause

package blackout

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// servingPID is the process that serves the pods: the child of the plugin's process, if that supervises one, or that
// process itself.
func servingPID(pid int) int {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		child, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if stat := statOf(child); stat != nil && stat[1] == strconv.Itoa(pid) && stat[0] != "Z" {
			return child
		}
	}
	return pid
}

// cpuTime is what the processes have used so far, without those that have ended.
func cpuTime(pids []int) (sum time.Duration) {
	for _, pid := range pids {
		if stat := statOf(pid); stat != nil {
			user, _ := strconv.Atoi(stat[11])
			system, _ := strconv.Atoi(stat[12])
			sum += time.Duration(user+system) * tick
		}
	}
	return sum
}

// tick is the unit of CPU times in /proc: USER_HZ, 100 per second wherever Go runs on Linux (proc(5), times(2)).
const tick = time.Second / 100

// statOf is /proc/PID/stat from its third field on, the state: the second one, the name in parentheses, may hold
// anything. It is nil when the process has ended.
func statOf(pid int) []string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	if fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])); len(fields) > 12 {
		return fields
	}
	return nil
}

// commandLine of a running process.
func commandLine(pid int) ([]string, error) {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return nil, fmt.Errorf("reading the command line of process %d: %w", pid, err)
	}
	if len(line) == 0 {
		return nil, fmt.Errorf("process %d has no command line: it has ended", pid)
	}
	return strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00"), nil
}
