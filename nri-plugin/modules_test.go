// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"os/exec"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
)

// TestModules: the first block of go.mod has what is linked into the program, and the
// second what is not, so that a reader sees what runs in production.
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
	blocks := strings.Split(page(t, "../go.mod"), "\nrequire (\n")
	if len(blocks) != 4 {
		t.Fatalf("go.mod has %d blocks of requirements, not those of the program, of tests, and of both indirectly", len(blocks)-1)
	}
	for i, block := range blocks[1:3] {
		block, _, _ = strings.Cut(block, "\n)")
		for line := range strings.Lines(block) {
			module, _, _ := strings.Cut(strings.TrimSpace(line), " ")
			if module != "//" && slices.Contains(linked, module) != (i == 0) {
				t.Errorf("go.mod: %s is in the wrong block: is it linked into the program?", module)
			}
		}
	}
}
