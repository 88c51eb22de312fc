// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"

	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/settings"
)

// A process that is not to show anything in Kubernetes, or cannot, serves all the same.
func TestKubeStatusIsOff(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	if k := newKubeStatus(config.Config{}, logger); k != nil || k.tell() != nil || log.Len() > 0 {
		t.Errorf("without the setting: %v, the log is %s", k, &log)
	}
	t.Setenv(config.EnvServiceHost, "10.96.0.1")
	k := newKubeStatus(config.Config{KubeStatus: true}, logger)
	if k != nil || k.tell() != nil || !strings.Contains(log.String(), "deploy/components/kubernetes-status") || !strings.Contains(log.String(), settings.KubeStatus) {
		t.Errorf("without a token: %v, the log is %s", k, &log)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := k.Run(ctx); err != nil {
		t.Error(err)
	}
}
