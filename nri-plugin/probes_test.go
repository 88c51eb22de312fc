// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"strings"
	"testing"

	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/statustest"
)

// TestProbes over the socket, as the kubelet runs them.
func TestProbes(t *testing.T) {
	socket := statustest.Start(t, nil)
	ask := func(what string) (string, error) {
		var out strings.Builder
		err := run(context.Background(), plugintest.Environment(nil), []string{what, "-status-socket", socket}, &out, nil)
		return out.String(), err
	}
	if out, err := ask("ready"); err != nil || out != "ready\n" {
		t.Errorf("ready: %q, %v", out, err)
	}
	if out, err := ask("live"); err != nil || out != "live\n" {
		t.Errorf("live: %q, %v", out, err)
	}
	socket += "x"
	for _, what := range []string{"ready", "live"} {
		if out, err := ask(what); out != "" || !plugintest.ErrContains(err, "no process answers on "+socket) {
			t.Errorf("%s of nobody: %q, %v", what, out, err)
		}
	}
}
