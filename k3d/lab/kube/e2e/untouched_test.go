// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"slices"
	"strings"
)

// looks are what a pod of each node sees of its network and of what is mounted in it. What differs from pod to pod is
// left out.
type looks map[string]string

// look runs a pod that does not opt in on each node, and removes it.
func (s *stage) look() looks {
	s.t.Helper()
	seen := looks{}
	for _, node := range []string{"n1", "n2"} {
		const name = "looks"
		s.must(s.Apply(s.ctx, list(podSpec{name: name, node: node}.object())))
		s.awaitReady(name)
		for what, text := range s.seenIn(name) {
			seen[node+": "+what] = text
		}
		s.kubectl("delete", "pod", name, "--wait")
	}
	return seen
}

// seenIn reads what a pod sees of itself.
func (s *stage) seenIn(pod string) looks {
	s.t.Helper()
	read := func(file string) []string {
		out, err := s.tool(pod, "cat", file)
		s.must(err)
		return strings.Split(strings.TrimSpace(out), "\n")
	}
	return looks{
		"resolv.conf": strings.Join(read("/etc/resolv.conf"), "\n"),
		"interfaces":  columns(read("/proc/net/dev")[2:], 0),
		"routes":      columns(read("/proc/net/route"), 0, 1, 3, 5, 6, 7),
		"IPv6":        columns(read("/proc/net/if_inet6"), 3, 5),
		"mounts":      columns(read("/proc/self/mountinfo"), 4, 5),
		"limits":      strings.Join(read("/proc/self/limits"), "\n"),
	}
}

// columns are some columns of lines, sorted.
func columns(lines []string, numbers ...int) string {
	var out []string
	for _, line := range lines {
		var kept []string
		fields := strings.Fields(line)
		for _, n := range numbers {
			if n < len(fields) {
				kept = append(kept, fields[n])
			}
		}
		out = append(out, strings.Join(kept, " "))
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// untouched looks again, with the plugin on each node.
func (before looks) untouched(s *stage) {
	after := s.look()
	for what, was := range before {
		if now := after[what]; now != was {
			s.t.Errorf("%s\nwas, without the plugin:\n%s\nis, with it:\n%s", what, was, now)
		}
	}
	// Something does differ for a pod that opts in, so the comparison sees it.
	s.apply(podSpec{name: "looks-in", node: "n1", annotations: enabled()}.object())
	s.awaitReady("looks-in")
	opted := s.seenIn("looks-in")
	if !strings.Contains(opted["interfaces"], "ts0") {
		s.t.Errorf("a pod that opted in has the interfaces %q", opted["interfaces"])
	}
	if opted["resolv.conf"] != before["n1: resolv.conf"] {
		s.t.Errorf("resolv.conf of a pod that opted in is\n%s\nwant\n%s", opted["resolv.conf"], before["n1: resolv.conf"])
	}
}
