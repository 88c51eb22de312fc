// SPDX-License-Identifier: BSD-3-Clause

package blackout

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// inNetNS runs fn on a thread inside a network namespace: the sockets that it opens are there, and stay there.
func inNetNS(ns *os.File, fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so the runtime ends the thread
		if unix.Gettid() == unix.Getpid() {
			// But the main thread it only parks, for good: that one stays where it is, and the next goroutine gets
			// another.
			result <- inNetNS(ns, fn)
			runtime.UnlockOSThread()
			return
		}
		err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET) //nolint:forbidigo // the thread ends here
		if err != nil {
			result <- fmt.Errorf("entering network namespace %s: %w", ns.Name(), err)
			return
		}
		result <- fn()
	}()
	return <-result
}

// netnsOf opens the network namespace of a process.
func netnsOf(pid int) (*os.File, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, fmt.Errorf("opening the network namespace of process %d: %w", pid, err)
	}
	return ns, nil
}
