// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"tailscale-nri/engine/tailnet"
	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
)

// TestNewTailnet: what config.Read accepts, the tailnet accepts too.
func TestNewTailnet(t *testing.T) {
	const server = "http://127.0.0.1:1"
	for _, vars := range [][]string{
		{settings.AuthKey, plugintest.Secret, settings.LoginServer, server},
		{settings.OAuthID, "id", settings.OAuthSecret, plugintest.Secret, settings.LoginServer, server},
		{settings.OAuthID, "id", settings.OAuthSecret, plugintest.Secret, settings.LoginServer, server, settings.AuthKeyTTL, config.MinKeyTTL.String()},
		{settings.OAuthID, "id", settings.OAuthSecret, plugintest.Secret, settings.LoginServer, server, settings.AuthKeyTTL, config.MaxKeyTTL.String()},
	} {
		cfg, err := config.Read(plugintest.Environment(plugintest.Pairs(vars)))
		if err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		tn, err := newTailnet(cfg, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		if _, static := tn.(*tailnet.Static); static != (cfg.AuthKey != "") || tn.ControlURL() != server {
			t.Errorf("%v: got %T at %s", vars, tn, tn.ControlURL())
		}
		// What a key leaves behind is said at start, once and without the key.
		said := strings.Count(log.String(), "no device can be deleted")
		if want := len(cfg.AuthKey) / max(len(cfg.AuthKey), 1); said != want || strings.Contains(log.String(), plugintest.Secret) {
			t.Errorf("%v: the log is %q", vars, log.String())
		}
	}
}
