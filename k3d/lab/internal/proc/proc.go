// SPDX-License-Identifier: BSD-3-Clause

// Package proc is what the lab reads of processes in /proc, by github.com/prometheus/procfs.
package proc

import (
	"fmt"
	"time"

	"github.com/prometheus/procfs"
)

// Tick is the unit of CPU times in /proc: USER_HZ, 100 per second wherever Go runs on Linux (proc(5), times(2)).
const Tick = time.Second / 100

// Child is the process that a process has started and that has not ended; the first one, 0 if there is none.
func Child(pid int) int {
	all, err := procfs.AllProcs()
	if err != nil {
		return 0
	}
	for _, p := range all {
		if stat, err := p.Stat(); err == nil && stat.PPID == pid && stat.State != "Z" {
			return p.PID
		}
	}
	return 0
}

// CPUTime is what processes have used so far, in user mode and in the kernel on their behalf.
func CPUTime(pids ...int) (sum time.Duration, err error) {
	for _, pid := range pids {
		p, err := procfs.NewProc(pid)
		if err != nil {
			return 0, fmt.Errorf("reading the CPU time of process %d: %w", pid, err)
		}
		stat, err := p.Stat()
		if err != nil {
			return 0, fmt.Errorf("reading the CPU time of process %d: %w", pid, err)
		}
		sum += time.Duration(stat.UTime+stat.STime) * Tick
	}
	return sum, nil
}

// MachineTime is how long the machine was busy so far, for any process: all but idle and iowait. Work in softirqs,
// which belongs to no process, is in it.
func MachineTime() (time.Duration, error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return 0, err
	}
	stat, err := fs.Stat()
	if err != nil {
		return 0, fmt.Errorf("reading the machine's CPU time: %w", err)
	}
	c := stat.CPUTotal
	return time.Duration((c.User + c.Nice + c.System + c.IRQ + c.SoftIRQ) * float64(time.Second)), nil
}

// Memory is what processes hold, in MiB. A page that several processes have mapped counts in each one's RSS, and as a
// part of it in each one's PSS: processes of one binary share its text.
type Memory struct{ RSS, PSS float64 }

// ReadMemory adds up the memory of processes.
func ReadMemory(pids ...int) (sum Memory, err error) {
	const mib = 1 << 20
	for _, pid := range pids {
		p, err := procfs.NewProc(pid)
		if err != nil {
			return sum, fmt.Errorf("reading the memory of process %d: %w", pid, err)
		}
		rollup, err := p.ProcSMapsRollup()
		if err != nil {
			return sum, fmt.Errorf("reading the memory of process %d: %w", pid, err)
		}
		sum.RSS += float64(rollup.Rss) / mib
		sum.PSS += float64(rollup.Pss) / mib
	}
	if sum.RSS == 0 {
		return sum, fmt.Errorf("processes %v hold no memory: they have ended", pids)
	}
	return sum, nil
}

// CommandLine of a running process.
func CommandLine(pid int) ([]string, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return nil, fmt.Errorf("reading the command line of process %d: %w", pid, err)
	}
	argv, err := p.CmdLine()
	if err != nil {
		return nil, fmt.Errorf("reading the command line of process %d: %w", pid, err)
	}
	if len(argv) == 0 {
		return nil, fmt.Errorf("process %d has no command line: it has ended", pid)
	}
	return argv, nil
}
