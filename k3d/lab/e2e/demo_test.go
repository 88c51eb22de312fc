// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/demo"
	"tailscale-nri/k3d/lab/scene"
)

// TestDemo is what `make demo` does.
func TestDemo(t *testing.T) {
	t.Parallel()
	cfg := config(t, "demo")
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	err = demo.Run(t.Context(), demo.Config{Config: scene.Config{Lab: cfg}, Screen: demo.NewScreen(out)}, false)
	shown, readErr := os.ReadFile(out.Name())
	if err != nil || readErr != nil || strings.Contains(string(shown), "\x1b") {
		t.Errorf("%v, %v; shown:\n%s", err, readErr, shown)
	}
	if left, err := lab.Remains(cfg); err != nil || len(left) > 0 {
		t.Errorf("left after the demo: %q, %v", left, err)
	}
}

// TestLookAround types what the demo with KEEP=1 says can be typed.
func TestLookAround(t *testing.T) {
	t.Parallel()
	s := openServed(t, "look")
	s.must(s.StartPeer(s.ctx))
	s.runServing("web")
	for _, c := range s.LookAround() {
		cmd := exec.CommandContext(s.ctx, "sh", "-c", c.Line)
		cmd.Dir = "../../.."
		if out, err := cmd.CombinedOutput(); err != nil || len(out) == 0 {
			t.Errorf("%s: %v\n%s", c.Line, err, out)
		}
	}
}
