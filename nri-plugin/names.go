// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"tailscale-nri/engine"
	"tailscale-nri/engine/tailnet"
)

// tailnetNames are what errors of a tailnet call the settings.
var tailnetNames = tailnet.Names{
	ClientID:      envOAuthID,
	ClientSecret:  envOAuthSecret,
	IDTokenFile:   envIDTokenFile,
	AuthKey:       envAuthKey,
	ControlURL:    envLoginServer,
	AuthKeyTTL:    envAuthKeyTTL,
	Tags:          envTags,
	Proxy:         envHTTPSProxy + " and " + envHTTPProxy,
	NodeTags:      "the annotation " + annotationTags,
	NodeEphemeral: "the annotation " + annotationEphemeral,
}

// engineNames are what the engine's reasons and log call the settings.
var engineNames = engine.Names{
	StateDir:   envStateDir,
	Identities: envStateSecrets + "=true with the rights for it (deploy/components/workload-state)",
	PodProfile: "the annotation " + annotationProfile,
	Profile:    func(profile string) string { return "the keys " + profile + ".TS_…" },
}
