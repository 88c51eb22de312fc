// SPDX-License-Identifier: BSD-3-Clause

package nri

import (
	"log/slog"
	"os"
	"testing"

	nrilog "github.com/containerd/nri/pkg/log"

	"tailscale-nri/nri-plugin/internal/plugintest"
)

func TestMain(m *testing.M) {
	if os.Getenv(plugintest.RoleVar) == "runtime" {
		plugintest.RuntimeProcess(os.Args[1])
		return
	}
	nrilog.Set(NewQuietLogger(slog.New(slog.DiscardHandler)))
	os.Exit(m.Run())
}
