// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// machine is what a cluster might change of this machine and lab.Remains does not look for: files by their names, and
// settings of the kernel that no namespace has its own of, by their values.
type machine map[string]string

func lookAtMachine() machine {
	seen := machine{}
	home, _ := os.UserHomeDir() // "" where there is none, and no cache in it either
	for _, pattern := range []string{
		"/etc/*", "/etc/cni/*", "/opt/*", "/usr/libexec/*", "/usr/local/*", "/var/lib/*", "/var/log/*",
		filepath.Join(home, ".kube/cache/discovery/*"), filepath.Join(home, ".cache/helm"), filepath.Join(home, ".config/helm"),
	} {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			seen[file] = "there"
		}
	}
	for _, key := range []string{
		"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys",
		"kernel/keys/root_maxbytes", "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding",
	} {
		value, _ := os.ReadFile(filepath.Join("/proc/sys", key))
		seen[key] = strings.TrimSpace(string(value))
	}
	return seen
}

// compare fails when the machine is another now.
func (was machine) compare(t *testing.T) {
	t.Helper()
	now := lookAtMachine()
	all := maps.Clone(was)
	maps.Copy(all, now)
	for _, what := range slices.Sorted(maps.Keys(all)) {
		if was[what] != now[what] {
			t.Errorf("the machine's %s was %q, and is %q after the tests", what, was[what], now[what])
		}
	}
}
