// SPDX-License-Identifier: BSD-3-Clause

// Package privileges says which of the capabilities that the program needs this
// process lacks.
//
// It neither takes nor drops any: a process keeps what it was started with.
package privileges

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Capability is one as the kernel counts it and as a manifest names it.
type Capability struct {
	Bit  uint
	Name string
}

// Needed are the capabilities without which no pod can be served: to make and
// program interfaces, to hear of changes in the pods' netns, to open packet sockets,
// to enter a pod's netns.
var Needed = []Capability{
	{unix.CAP_NET_ADMIN, "NET_ADMIN"},
	{unix.CAP_NET_BROADCAST, "NET_BROADCAST"},
	{unix.CAP_NET_RAW, "NET_RAW"},
	{unix.CAP_SYS_ADMIN, "SYS_ADMIN"},
}

var capEff = regexp.MustCompile(`(?m)^CapEff:\s*([0-9a-f]+)$`)

// Error cannot be fixed by configuration: the process keeps the
// capabilities that it was started with.
type Error struct{ Err error }

// Error implements error.
func (e Error) Error() string { return e.Err.Error() }

// Unwrap returns the reason.
func (e Error) Unwrap() error { return e.Err }

// Check reports which capabilities this process lacks. Its error is a
// [Error].
func Check() error {
	if err := needCaps(); err != nil {
		return Error{err}
	}
	return nil
}

func needCaps() error {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fmt.Errorf("reading the capabilities of this process: %w", err)
	}
	missing, err := Missing(string(status))
	if err != nil || len(missing) == 0 {
		return err
	}
	return fmt.Errorf("missing capabilities %s (uid %d): run as root, or add them to the container's securityContext.capabilities",
		strings.Join(missing, ", "), os.Geteuid())
}

// Missing names what the effective set in a /proc/PID/status lacks.
func Missing(status string) ([]string, error) {
	m := capEff.FindStringSubmatch(status)
	if m == nil {
		return nil, fmt.Errorf("reading /proc/self/status: it has no CapEff line")
	}
	set, err := strconv.ParseUint(m[1], 16, 64)
	if err != nil {
		return nil, fmt.Errorf("reading CapEff of /proc/self/status: %w", err)
	}
	var missing []string
	for _, c := range Needed {
		if set&(1<<c.Bit) == 0 {
			missing = append(missing, c.Name)
		}
	}
	return missing, nil
}
