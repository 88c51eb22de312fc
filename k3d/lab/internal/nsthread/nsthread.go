// SPDX-License-Identifier: BSD-3-Clause

// Package nsthread runs functions on threads of their own, which may enter namespaces.
package nsthread

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Run runs fn on a thread of its own, which ends with it: fn may move the thread to any namespace.
func Run(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so the runtime ends the thread and its namespaces with it
		if unix.Gettid() != unix.Getpid() {
			result <- fn()
			return
		}
		// But the main thread it only parks, for good (runtime.mexit), and the whole process would seem to be in
		// fn's namespace. While this goroutine has it, the next one gets another.
		result <- Run(fn)
		runtime.UnlockOSThread()
	}()
	return <-result
}

// InNetNS runs fn on a thread inside the network namespace: /proc/sys/net and the sockets that it opens are that one's,
// and the sockets stay there.
func InNetNS(ns *os.File, fn func() error) error {
	return Run(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering network namespace %s: %w", ns.Name(), err)
		}
		return fn()
	})
}

// OpenNetNS opens the network namespace of a process.
func OpenNetNS(pid int) (*os.File, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, fmt.Errorf("opening the network namespace of process %d: %w", pid, err)
	}
	return ns, nil
}
