// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// processes finds the processes that belong to a lab.
type processes struct {
	namespaces []os.FileInfo // of Dir/ns, compared by device and inode
	cgroup     string        // "/NAME/", an element of their cgroup's path
}

func (c Config) processes() processes {
	p := processes{cgroup: "/" + c.Name + "/"}
	files, _ := filepath.Glob(c.nsFile("*"))
	for _, file := range files {
		// A plain file is what a namespace leaves that was never made.
		if info, err := os.Stat(file); err == nil && isNamespace(file) {
			p.namespaces = append(p.namespaces, info)
		}
	}
	return p
}

func isNamespace(file string) bool {
	var st unix.Statfs_t
	return unix.Statfs(file, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// has says whether a process is in one of the lab's namespaces or cgroups. One without an executable has ended and
// waits for its parent, or is the kernel's.
func (p processes) has(pid int) bool {
	if _, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil {
		return false
	}
	for _, kind := range []string{"net", "mnt"} {
		info, err := os.Stat(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
		if err != nil {
			continue
		}
		if slices.ContainsFunc(p.namespaces, func(ns os.FileInfo) bool { return os.SameFile(ns, info) }) {
			return true
		}
	}
	return p.inCgroup(pid)
}

// inCgroup looks for the lab's name as an element of a path: in a container the paths begin with the container's own.
func (p processes) inCgroup(pid int) bool {
	lines, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)) // hierarchy:controllers:path, cgroups(7)
	for line := range strings.Lines(string(lines)) {
		if strings.Contains(strings.TrimSpace(line)+"/", p.cgroup) {
			return true
		}
	}
	return false
}

// pids of all processes of the lab but the calling one.
func (p processes) pids() []int {
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && pid != os.Getpid() && p.has(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// killAll kills every process until none is left. A parent may start another one meanwhile, so it looks again.
func (p processes) killAll(patience time.Duration) error {
	for deadline := time.Now().Add(patience); ; {
		pids := p.pids()
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("ending the lab's processes: %s are still there", describe(pids))
		}
		for _, pid := range pids {
			if err := p.kill(pid); err != nil {
				return err
			}
		}
	}
}

// kill holds the process by a pidfd while it looks once more whose it is, so that a reused pid is never hit.
func (p processes) kill(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if !p.has(pid) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("killing process %d: %w", pid, err)
	}
	return awaitExit(fd, 2*time.Second)
}

// awaitExit returns when the process has ended or the time is over: the caller looks again either way.
func awaitExit(pidfd int, patience time.Duration) error {
	set := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	if _, err := unix.Poll(set, int(patience.Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("waiting for a process to end: %w", err)
	}
	return nil
}

// describe names processes for an error.
func describe(pids []int) string {
	var names []string
	for _, pid := range pids {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		line = bytes.TrimSpace(bytes.ReplaceAll(line, []byte{0}, []byte{' '}))
		names = append(names, fmt.Sprintf("%d (%.80s)", pid, line))
	}
	return strings.Join(names, ", ")
}
