// SPDX-License-Identifier: BSD-3-Clause

package supervisor

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
	storeInFD  = 4
	storeOutFD = 5

	MarkServes  = 's' // it serves, or waits for what it lacks
	MarkExit    = 'e' // it ends on purpose, whatever its exit code is
	MarkRestart = 'a' // it ends in order to be started again
)

// Parent is the supervisor of this process. The zero value means that there is none.
type Parent struct {
	Supervises bool
	Restarts   int // how often it has started this program again
}

// FindParent reads what the supervisor has set in the environment.
func FindParent(getenv func(string) string) Parent {
	restarts, err := strconv.Atoi(getenv(restartsVar))
	return Parent{Supervises: err == nil, Restarts: restarts}
}

// CloseOnExec keeps the inherited descriptors from this process's own children.
func (p Parent) CloseOnExec() {
	if p.Supervises {
		syscall.CloseOnExec(marksFD)
		syscall.CloseOnExec(storeInFD)
		syscall.CloseOnExec(storeOutFD)
	}
}

// FDStore returns the supervisor's store, or a new one that ends with this process.
func (p Parent) FDStore() (FDStore, error) {
	if p.Supervises {
		return FDStore{in: storeInFD, out: storeOutFD}, nil
	}
	return newFDStore()
}

// Mark tells the supervisor. Its end ends this process as well, so an error does not
// matter.
func (p Parent) Mark(m byte) {
	if p.Supervises {
		_, _ = syscall.Write(marksFD, []byte{m})
	}
}
