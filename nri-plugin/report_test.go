// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"os"
	"testing"

	"tailscale-nri/nri-plugin/internal/config"
)

func TestHostName(t *testing.T) {
	own, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if a, b := hostName(config.Config{}), hostName(config.Config{NodeName: "n1"}); a != own || b != "n1" {
		t.Errorf("%q and %q", a, b)
	}
}
