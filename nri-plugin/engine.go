// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"log/slog"
	"os"

	"tailscale-nri/engine"
	"tailscale-nri/engine/tailnet"
	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/logging"
)

// newEngine wires the engine to the tailnets. It serves the state
// directory that is claimed, and keeps the links' sockets in sockets. tell is called with
// each change of a node, unless it is nil.
func newEngine(cfg config.Config, tn tailnets, claim *engine.Claim, sockets engine.SocketStore, tell func(engine.Change), log *slog.Logger) (*engine.Engine, error) {
	after := cfg.SweepAfter
	if after == 0 {
		after = -1 // the engine's word for never
	}
	return engine.New(engine.Config{
		StateDir: cfg.StateDir, Claim: claim, Tailnet: tn.main, Profiles: tn.profiles, SweepAfter: after, NoLocalDelivery: cfg.NoLocal,
		ClusterRanges: config.ClusterRanges(cfg.Ranges, os.Getenv(config.EnvServiceHost), log),
		Services:      config.ServicesNear(cfg.Ranges, os.Getenv(config.EnvServiceHost)),
		Sockets:       sockets, Logger: log, Identities: identityStore(cfg, log), Host: cfg.NodeName, OnChange: tell, Redact: logging.RedactText(cfg),
		Names: config.EngineNames, Remark: config.UnnamedServices(cfg.Ranges, os.Getenv(config.EnvServiceHost)),
	})
}

// keysAhead is how many auth keys lie ready for each set of tags in use.
const keysAhead = 2

// keyLeavesBehind is logged once at start: no device can be deleted with an auth key.
const keyLeavesBehind = "TS_AUTHKEY is set, with which no device can be deleted: a pod's device goes with the pod if the key is an ephemeral one; " +
	"of any other key it stays in the tailnet, expired, and keeps its name, until somebody deletes it by hand"

// newTailnet returns the access to the tailnet that cfg names.
func newTailnet(cfg config.Config, log *slog.Logger) (tailnet.Tailnet, error) {
	if cfg.AuthKey != "" {
		log.Warn(keyLeavesBehind)
		return tailnet.NewStatic(tailnet.StaticConfig{AuthKey: cfg.AuthKey, ControlURL: cfg.LoginServer, Names: config.TailnetNames})
	}
	return tailnet.NewOAuth(tailnet.OAuthConfig{
		ClientID:     cfg.OAuthID,
		ClientSecret: cfg.OAuthSecret,
		IDTokenFile:  cfg.IDTokenFile,
		BaseURL:      cfg.APIURL,
		ControlURL:   cfg.LoginServer,
		Cluster:      cfg.Cluster,
		Tags:         cfg.Tags,
		AuthKeyTTL:   cfg.AuthKeyTTL,
		Transport:    config.APITransport(cfg.Proxy),
		KeysAhead:    keysAhead,
		Names:        config.TailnetNames,
		Logger:       log,
	})
}
