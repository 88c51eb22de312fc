// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"tailscale-nri/engine/tailnet"
	"tailscale-nri/nri-plugin/internal/errtext"
	"tailscale-nri/nri-plugin/internal/podspec"
	"tailscale-nri/nri-plugin/internal/settings"
)

// A profile is a further way into a tailnet, beside the one without a name. Its
// variables are files of the directory that TS_CONFIG_DIR names, called like the
// variable with the profile's name and a dot before it: prod.TS_AUTHKEY. So one
// Secret holds those of all profiles, and a profile comes and goes without a change
// of any mount. It inherits nothing but the cluster's name and the proxies.

// profileVars are the variables that a profile has of its own.
func profileVars() []string {
	return []string{settings.OAuthID, settings.OAuthSecret, settings.IDTokenFile, settings.AuthKey, settings.LoginServer, settings.APIURL, settings.AuthKeyTTL, settings.Tags}
}

// profileKey splits a file's name. ok is false for one that is no profile's.
func profileKey(file string) (profile, key string, ok bool) {
	profile, key, ok = strings.Cut(file, ".")
	return profile, key, ok && podspec.CheckLabel(profile) == nil
}

// isProfileVar reports whether a file holds a variable of a profile.
func isProfileVar(file string) bool {
	_, key, ok := profileKey(file)
	return ok && slices.Contains(profileVars(), key)
}

// wrongProfileKey is the remedy for a file that is a profile's by its name alone.
func wrongProfileKey(profile, key string) string {
	if like, ok := closestSetting(key); ok && slices.Contains(profileVars(), like) {
		return "did you mean " + profile + "." + like + "?"
	}
	return "a profile has " + strings.Join(profileVars(), ", ")
}

// profileError is what is wrong with a profile.
type profileError struct {
	profile string
	err     error
}

func (e profileError) Error() string {
	return fmt.Sprintf("profile %s (%s.TS_…): %s", e.profile, e.profile, errtext.OneLine(e.err))
}

func (e profileError) Unwrap() error { return e.err }

// parseProfiles checks the variables of all profiles. c is the configuration without
// them.
func parseProfiles(v values, c Config) (profiles map[string]Config, errs []error) {
	for _, file := range slices.Sorted(maps.Keys(v)) {
		name, _, ok := profileKey(file)
		if _, again := profiles[name]; !ok || again {
			continue
		}
		r := newReader(v.get)
		r.prefix = name + "."
		p := Config{Proxy: c.Proxy, Cluster: c.Cluster, Dir: c.Dir}
		if err := r.tailnet(&p); err != nil {
			r.errs = append(r.errs, profileError{name, err})
		}
		if profiles == nil {
			profiles = map[string]Config{}
		}
		profiles[name] = p
		errs = append(errs, r.errs...)
	}
	return profiles, errs
}

// tailnet reads the way into a tailnet. It returns what is wrong with it as a
// whole.
func (r *reader) tailnet(c *Config) error {
	c.OAuthID = r.text(settings.OAuthID)
	c.OAuthSecret = r.text(settings.OAuthSecret)
	c.IDTokenFile = r.text(settings.IDTokenFile)
	c.AuthKey = r.text(settings.AuthKey)
	c.LoginServer = r.url(settings.LoginServer)
	c.APIURL = r.url(settings.APIURL)
	c.AuthKeyTTL = r.keyTTL(settings.AuthKeyTTL)
	c.Tags = r.tags(settings.Tags)
	if c.AuthKey != "" && r.raw(settings.Tags) == "" {
		// The key's own tags decide; asking for others would be refused.
		c.Tags = nil
	}
	return checkCredentials(*c)
}

// tailnets are the ways into all of them.
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
func newTailnets(cfg Config, log *slog.Logger) (t tailnets, err error) {
	if t.main, err = newTailnet(cfg, log); err != nil {
		return t, err
	}
	t.profiles = map[string]tailnet.Tailnet{}
	for name, p := range cfg.Profiles {
		if t.profiles[name], err = newTailnet(p, log.With("profile", name)); err != nil {
			return t, profileError{name, err}
		}
	}
	return t, nil
}

// defaultsOf are the defaults of pods.
func defaultsOf(cfg Config) podspec.Defaults {
	d := podspec.Defaults{Cluster: cfg.Cluster, Tags: cfg.Tags, Static: cfg.AuthKey != "", Kept: cfg.StateSecrets, Profiles: map[string]podspec.Defaults{}}
	for name, p := range cfg.Profiles {
		d.Profiles[name] = podspec.Defaults{Tags: p.Tags, Static: p.AuthKey != ""}
	}
	return d
}
