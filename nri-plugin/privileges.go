// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// capability is one as the kernel counts it and as a manifest names it.
type capability struct {
	bit  uint
	name string
}

// needed are the capabilities without which no pod can be served: to make and
// program interfaces, to hear of changes in the pods' netns, to open packet sockets,
// to enter a pod's netns.
var needed = []capability{
	{unix.CAP_NET_ADMIN, "NET_ADMIN"},
	{unix.CAP_NET_BROADCAST, "NET_BROADCAST"},
	{unix.CAP_NET_RAW, "NET_RAW"},
	{unix.CAP_SYS_ADMIN, "SYS_ADMIN"},
}

var capEff = regexp.MustCompile(`(?m)^CapEff:\s*([0-9a-f]+)$`)

// privilegeError is one that no configuration mends: the process keeps the
// capabilities that it was started with.
type privilegeError struct{ error }

func (e privilegeError) Unwrap() error { return e.error }

// checkPrivileges reports which capabilities this process lacks. Its error is a
// privilegeError.
func checkPrivileges() error {
	if err := needCaps(); err != nil {
		return privilegeError{err}
	}
	return nil
}

func needCaps() error {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fmt.Errorf("reading the capabilities of this process: %w", err)
	}
	missing, err := missingCaps(string(status))
	if err != nil || len(missing) == 0 {
		return err
	}
	return fmt.Errorf("missing capabilities %s (uid %d): run as root, or add them to the container's securityContext.capabilities",
		strings.Join(missing, ", "), os.Geteuid())
}

// missingCaps names what the effective set in a /proc/PID/status lacks.
func missingCaps(status string) ([]string, error) {
	m := capEff.FindStringSubmatch(status)
	if m == nil {
		return nil, fmt.Errorf("reading /proc/self/status: it has no CapEff line")
	}
	set, err := strconv.ParseUint(m[1], 16, 64)
	if err != nil {
		return nil, fmt.Errorf("reading CapEff of /proc/self/status: %w", err)
	}
	var missing []string
	for _, c := range needed {
		if set&(1<<c.bit) == 0 {
			missing = append(missing, c.name)
		}
	}
	return missing, nil
}
