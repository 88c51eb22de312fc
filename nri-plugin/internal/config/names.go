// SPDX-License-Identifier: BSD-3-Clause

package config

import (
	"tailscale-nri/engine"
	"tailscale-nri/engine/tailnet"
	"tailscale-nri/nri-plugin/internal/podspec"
	"tailscale-nri/nri-plugin/internal/settings"
)

// TailnetNames are the names of settings in the errors of a tailnet.
var TailnetNames = tailnet.Names{
	ClientID:      settings.OAuthID,
	ClientSecret:  settings.OAuthSecret,
	IDTokenFile:   settings.IDTokenFile,
	AuthKey:       settings.AuthKey,
	ControlURL:    settings.LoginServer,
	AuthKeyTTL:    settings.AuthKeyTTL,
	Tags:          settings.Tags,
	Proxy:         settings.HTTPSProxy + " and " + settings.HTTPProxy,
	NodeTags:      "the annotation " + podspec.AnnotationTags,
	NodeEphemeral: "the annotation " + podspec.AnnotationEphemeral,
}

// EngineNames are the names of settings in the engine's reasons and log.
var EngineNames = engine.Names{
	StateDir:   settings.StateDir,
	Identities: settings.StateSecrets + "=true with the rights for it (deploy/components/workload-state)",
	PodProfile: "the annotation " + podspec.AnnotationProfile,
	Profile:    func(profile string) string { return "the keys " + profile + ".TS_…" },
}
