// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"strings"
	"testing"

	"tailscale-nri/nri-plugin/internal/status"
)

// TestVersions: a long reason for a missing answer does not widen the table.
func TestVersions(t *testing.T) {
	versions := []agentVersion{
		{agent: agentOf(t, "a", `{}`), version: "1.2.3"},
		{agent: agentOf(t, "b", `{}`), err: errors.New("CrashLoopBackOff: back-off 5m0s restarting failed container")},
	}
	var out strings.Builder
	code, err := printVersions(&out, versions)
	if want := `HOST  AGENT            VERSION  IMAGE
n1    tailscale-nri/a  1.2.3    i:1
n1    tailscale-nri/b  -        i:1

n1: agent tailscale-nri/b does not answer: CrashLoopBackOff: back-off 5m0s restarting failed container
`; err != nil || code != status.ExitNotAsked || out.String() != want {
		t.Errorf("exit code %d (%v), got\n%s\nwant\n%s", code, err, &out, want)
	}
	out.Reset()
	if code, err := printVersions(&out, versions[:1]); err != nil || code != status.ExitOK || strings.HasSuffix(out.String(), "\n\n") {
		t.Errorf("exit code %d (%v), got\n%s", code, err, &out)
	}
}
