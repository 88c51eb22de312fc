// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/settings"
)

// Where nothing is mounted, pods that need no store are served all the same.
func TestNoIdentityStore(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	if s := identityStore(config.Config{}, log); s != nil {
		t.Errorf("a store that nobody asked for: %v", s)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "192.0.2.1")
	if _, err := identityStore(config.Config{StateSecrets: true}, log).List(t.Context()); err == nil || !strings.Contains(err.Error(), settings.NodeName) {
		t.Errorf("without the node's name: %v", err)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	s := identityStore(config.Config{StateSecrets: true, NodeName: "n1"}, log)
	if s == nil {
		t.Fatal("no store")
	}
	_, err := s.Load(t.Context(), engine.WorkloadKey{})
	if err == nil || errors.Is(err, engine.ErrNoIdentity) {
		t.Errorf("Load = %v: a pod would make a new identity", err)
	}
	if _, err := s.List(t.Context()); err == nil {
		t.Error("List succeeds: the sweep would delete what is kept")
	}
}
