// SPDX-License-Identifier: BSD-3-Clause

// Package statustest serves a status for tests.
//
// It is linked into tests alone.
package statustest

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

// Start serves nodes on a socket until the test ends.
func Start(t *testing.T, nodes []engine.NodeStatus) (socket string) {
	t.Helper()
	h := &statussocket.Health{}
	h.Serves(plugintest.FixedNodes(nodes))
	h.Connect()(nil)
	return Serve(t, h)
}

// Serve serves what h says on a socket until the test ends.
func Serve(t *testing.T, h *statussocket.Health) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "run", "status.sock")
	ln, err := statussocket.Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &statussocket.Server{Health: h, Host: "n1", Listener: ln}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := plugintest.Receive(t, done, "the end of Run"); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(socket); !os.IsNotExist(err) {
			t.Errorf("the socket is left: %v", err)
		}
	})
	return socket
}
