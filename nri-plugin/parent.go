// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"strconv"
	"syscall"
)

const (
	// restartsVar is set for a child alone: how often it was started again.
	restartsVar = "TAILSCALE_NRI_RESTARTS"

	// Descriptors that a child inherits. Its marks say what an exit code cannot:
	// any package may call os.Exit, with any code.
	marksFD    = 3
	shelfInFD  = 4
	shelfOutFD = 5

	markServes  = 's' // it has come to serve, or to wait for what it lacks
	markExit    = 'e' // it ends on purpose, whatever its exit code is
	markRestart = 'a' // it ends in order to be started again
)

// parent is the supervisor of this process. The zero value is none.
type parent struct {
	supervises bool
	restarts   int // how often it has started this program again
}

// findParent reads what the supervisor says in the environment.
func findParent(getenv func(string) string) parent {
	restarts, err := strconv.Atoi(getenv(restartsVar))
	return parent{supervises: err == nil, restarts: restarts}
}

// adopt keeps what is inherited from being passed on.
func (p parent) adopt() {
	if p.supervises {
		syscall.CloseOnExec(marksFD)
		syscall.CloseOnExec(shelfInFD)
		syscall.CloseOnExec(shelfOutFD)
	}
}

// shelf is the supervisor's, or one that ends with this process.
func (p parent) shelf() (shelf, error) {
	if p.supervises {
		return shelf{in: shelfInFD, out: shelfOutFD}, nil
	}
	return newShelf()
}

// mark tells the supervisor. One that has ended ends this process as well, so
// there is no error to speak of.
func (p parent) mark(m byte) {
	if p.supervises {
		_, _ = syscall.Write(marksFD, []byte{m})
	}
}
