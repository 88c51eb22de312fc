// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"log/slog"
	"os"
	"testing"

	nrilog "github.com/containerd/nri/pkg/log"
	"tailscale.com/feature/buildfeatures"

	"tailscale-nri/nri-plugin/internal/nri"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/supervisor"
)

func TestMain(m *testing.M) {
	switch os.Getenv(plugintest.RoleVar) {
	case "runtime":
		plugintest.RuntimeProcess(os.Args[1])
	case "main":
		go endOnSignal()
		main()
	case "crash":
		if supervisor.FindParent(os.Getenv).Supervises {
			os.Exit(crashCode)
		}
		main()
	case "sockets":
		if supervisor.FindParent(os.Getenv).Supervises {
			keepPacketSockets()
		}
		main()
	case "orphan":
		leaveOrphan()
	default:
		if buildfeatures.HasServe {
			fmt.Fprintln(os.Stderr, "these tests need the program's build tags: run make unit PKG=./nri-plugin RUN=TestName")
			os.Exit(1)
		}
		nrilog.Set(nri.NewQuietLogger(slog.New(slog.DiscardHandler)))
		os.Exit(m.Run())
	}
}
