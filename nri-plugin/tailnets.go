// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"log/slog"
	"maps"
	"slices"

	"tailscale-nri/engine/tailnet"
	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/podspec"
)

// tailnets holds the access to every tailnet of the configuration.
type tailnets struct {
	main     tailnet.Tailnet
	profiles map[string]tailnet.Tailnet
}

// calls are the calls of all tailnets' APIs, by operation and result; nil where there
// is none.
func (t tailnets) calls() (sum map[tailnet.Call]uint64) {
	for _, tn := range append(slices.Collect(maps.Values(t.profiles)), t.main) {
		if api, ok := tn.(interface {
			Calls() map[tailnet.Call]uint64
		}); ok {
			if sum == nil {
				sum = map[tailnet.Call]uint64{}
			}
			for call, n := range api.Calls() {
				sum[call] += n
			}
		}
	}
	return sum
}

// newTailnets are the ways into the tailnets that cfg names.
func newTailnets(cfg config.Config, log *slog.Logger) (t tailnets, err error) {
	if t.main, err = newTailnet(cfg, log); err != nil {
		return t, err
	}
	t.profiles = map[string]tailnet.Tailnet{}
	for name, p := range cfg.Profiles {
		if t.profiles[name], err = newTailnet(p, log.With("profile", name)); err != nil {
			return t, config.ProfileError{Profile: name, Err: err}
		}
	}
	return t, nil
}

// defaultsOf are the defaults of pods.
func defaultsOf(cfg config.Config) podspec.Defaults {
	d := podspec.Defaults{Cluster: cfg.Cluster, Tags: cfg.Tags, Static: cfg.AuthKey != "", Kept: cfg.StateSecrets, Profiles: map[string]podspec.Defaults{}}
	for name, p := range cfg.Profiles {
		d.Profiles[name] = podspec.Defaults{Tags: p.Tags, Static: p.AuthKey != ""}
	}
	return d
}
