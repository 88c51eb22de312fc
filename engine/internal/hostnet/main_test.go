// SPDX-License-Identifier: BSD-3-Clause

package hostnet

import (
	"os"
	"testing"

	"tailscale-nri/engine/internal/nstest"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }
