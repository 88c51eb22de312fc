// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"tailscale-nri/nri-plugin/internal/ocihook"
)

// A container waits for the hook's start, and the hook is this program: what its packages set up before main is paid
// there. These bound it in bytes, which are the same on each machine; 100 KB take about half a millisecond.
const (
	mostInit    = 1 << 20   // of all packages
	mostOwnInit = 64 << 10  // of one of ours
	mostOneInit = 256 << 10 // of any
)

// buildProgram builds the program with the tags of this test, and without the race detector, which sets up more.
func buildProgram(t *testing.T) string {
	t.Helper()
	info, ok := debug.ReadBuildInfo()
	if !ok {
		t.Fatal("this test does not know its build tags")
	}
	path := filepath.Join(t.TempDir(), "tailscale-nri")
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", path}
	for _, s := range info.Settings {
		if s.Key == "-tags" {
			args = append(args, "-tags="+s.Value)
		}
	}
	cmd := exec.Command("go", append(args, ".")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return path
}

// TestHookStart: no package sets up as the program starts what only a process that serves needs.
func TestHookStart(t *testing.T) {
	cmd := exec.Command(buildProgram(t), ocihook.Command, "no call")
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	var text strings.Builder
	cmd.Stderr = &text
	if err := cmd.Run(); err == nil || !strings.Contains(text.String(), "reading the hook's argument") {
		t.Fatalf("it was not the hook that ran: %v\n%s", err, &text)
	}
	sum, seen := 0, 0
	for line := range strings.Lines(text.String()) {
		var pkg string
		var at, took float64
		var size, allocs int
		if n, _ := fmt.Sscanf(line, "init %s @%f ms, %f ms clock, %d bytes, %d allocs", &pkg, &at, &took, &size, &allocs); n != 5 {
			continue
		}
		sum += size
		seen++
		if size > mostOneInit || size > mostOwnInit && strings.HasPrefix(pkg, "tailscale-nri/") {
			t.Errorf("package %s sets up %d bytes in %d pieces before main: have it do so when that is needed", pkg, size, allocs)
		}
	}
	t.Logf("%d packages set up %d bytes", seen, sum)
	if seen < 50 || sum > mostInit {
		t.Errorf("%d packages set up %d bytes, want %d at most", seen, sum, mostInit)
	}
}
