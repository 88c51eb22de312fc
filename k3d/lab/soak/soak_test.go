// SPDX-License-Identifier: BSD-3-Clause

package soak

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/scene"
)

// TestFindsLeaks runs a few cycles and leaves one thing of each sort behind: each is found, and named.
func TestFindsLeaks(t *testing.T) {
	var out bytes.Buffer
	cfg := Config{
		Lab: lab.Config{Name: "tsnri-sl"}, Cycles: 4, Parallel: 2, Settle: 10 * time.Second, Keep: t.TempDir(), Out: &out,
	}
	cfg.leak = func(ctx context.Context, s *scene.Scene) error {
		_, err := s.Lab.InNode(ctx, "sh", "-ec", `ip link add vetht0123456789 type veth peer name planted
			ip netns add planted; ip netns add runtimes; ip -n planted link add ts0 type veth peer name other
			mkdir -p /var/lib/tailscale-nri/uid-soak-2 /run/planted; touch /run/tailscale-nri/planted
			mount -t tmpfs planted /run/planted`)
		return err
	}
	result, err := Run(t.Context(), cfg)
	result.Print(&out, cfg.Seed)
	t.Log("\n" + out.String())
	if err != nil || len(result.Failures) > 0 {
		t.Fatalf("%v, %q", err, result.Failures)
	}
	all := strings.Join(result.Leaks, "\n")
	for _, want := range []string{
		"link vetht0123456789 of a sandbox that", "network namespace planted of", "state uid-soak-2 of pod default/c2 (cycle 2, ",
		"mount /run/planted of", "file planted of",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("expected a leak with %q, saw\n%s", want, all)
		}
	}
	if strings.Contains(all, "runtimes") {
		t.Errorf("a network namespace that only containerd can have made is taken for a leak:\n%s", all)
	}
	if len(result.Leaks) < 5 || !strings.HasSuffix(out.String(), "leaks: "+itoa(len(result.Leaks))+"\n") {
		t.Errorf("expected 5 leaks or more and their number last, saw\n%s", out.String())
	}
	if result.Silence == 0 {
		t.Error("the canary had no connection")
	}
	log, err := os.ReadFile(filepath.Join(result.Logs, "plugin.log"))
	if err != nil || !bytes.Contains(log, []byte("default/canary")) {
		t.Errorf("the plugin's log of a run with leaks was not kept: %v", err)
	}
}
