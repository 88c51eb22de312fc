// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"os/exec"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
)

// TestModules: go.mod marks the direct requirements that are not linked into the
// program, so that a reader sees what runs in production.
func TestModules(t *testing.T) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		t.Fatal("this test does not know its build tags")
	}
	args := []string{"list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}"}
	for _, s := range info.Settings {
		if s.Key == "-tags" {
			args = append(args, "-tags="+s.Value)
		}
	}
	out, err := exec.Command("go", append(args, ".")...).Output()
	if err != nil {
		t.Fatal(err)
	}
	linked := strings.Fields(string(out))
	_, direct, _ := strings.Cut(page(t, "../go.mod"), "\nrequire (\n")
	direct, _, _ = strings.Cut(direct, "\n)")
	found := 0
	for line := range strings.Lines(direct) {
		fields := strings.Fields(line)
		if fields[0] == "//" {
			continue
		}
		found++
		if marked := strings.HasSuffix(strings.TrimSpace(line), " // tests and lab"); marked == slices.Contains(linked, fields[0]) {
			t.Errorf("go.mod: %s is linked into the program, or marked as of tests and lab, not both and not neither", fields[0])
		}
	}
	if found < 20 {
		t.Errorf("go.mod has %d direct requirements, which are not all", found)
	}
}
