// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"log/slog"

	"tailscale-nri/engine"
	"tailscale-nri/engine/tailnet"
)

// newEngine wires the engine to the way into the tailnet that cfg names. It
// keeps the links' sockets in sockets.
func newEngine(cfg Config, sockets engine.SocketStore, log *slog.Logger) (*engine.Engine, error) {
	tn, err := newTailnet(cfg, log)
	if err != nil {
		return nil, err
	}
	after := cfg.SweepAfter
	if after == 0 {
		after = -1 // the engine's word for never
	}
	return engine.New(engine.Config{StateDir: cfg.StateDir, Tailnet: tn, SweepAfter: after, Sockets: sockets, Logger: log})
}

func newTailnet(cfg Config, log *slog.Logger) (tailnet.Tailnet, error) {
	if cfg.AuthKey != "" {
		return tailnet.NewStatic(tailnet.StaticConfig{AuthKey: cfg.AuthKey, ControlURL: cfg.LoginServer})
	}
	return tailnet.NewOAuth(tailnet.OAuthConfig{
		ClientID:     cfg.OAuthID,
		ClientSecret: cfg.OAuthSecret,
		BaseURL:      cfg.APIURL,
		ControlURL:   cfg.LoginServer,
		Cluster:      cfg.Cluster,
		Tags:         cfg.Tags,
		AuthKeyTTL:   cfg.AuthKeyTTL,
		Logger:       log,
	})
}
