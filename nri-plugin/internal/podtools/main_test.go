// SPDX-License-Identifier: BSD-3-Clause

package podtools

import (
	"os"
	"testing"

	"tailscale-nri/nri-plugin/internal/plugintest"
)

func TestMain(m *testing.M) {
	if os.Getenv(plugintest.RoleVar) == roleTool {
		os.Exit(toolProcess())
	}
	os.Exit(m.Run())
}
