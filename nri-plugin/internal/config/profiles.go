// SPDX-License-Identifier: BSD-3-Clause

package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"tailscale-nri/nri-plugin/internal/errtext"
	"tailscale-nri/nri-plugin/internal/podspec"
	"tailscale-nri/nri-plugin/internal/settings"
)

// A profile is a further way into a tailnet, in addition to the one without a name. Its
// variables are files of the directory that TS_CONFIG_DIR names, called like the
// variable with the profile's name and a dot before it: prod.TS_AUTHKEY. So one
// Secret holds those of all profiles, and a profile comes and goes without a change
// of any mount. It inherits nothing but the cluster's name and the proxies.

// profileVars are the variables that a profile has of its own.
func profileVars() []string {
	return []string{settings.OAuthID, settings.OAuthSecret, settings.IDTokenFile, settings.AuthKey, settings.LoginServer, settings.APIURL, settings.AuthKeyTTL, settings.Tags}
}

// profileKey splits a file's name. ok is false if it does not belong to a profile.
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

// ProfileError is an error in a profile.
type ProfileError struct {
	Profile string
	Err     error
}

// Error implements error.
func (e ProfileError) Error() string {
	return fmt.Sprintf("profile %s (%s.TS_…): %s", e.Profile, e.Profile, errtext.OneLine(e.Err))
}

// Unwrap is the error without the profile.
func (e ProfileError) Unwrap() error { return e.Err }

// parseProfiles checks the variables of all profiles. c is the configuration without
// them.
func parseProfiles(v Values, c Config) (profiles map[string]Config, errs []error) {
	for _, file := range slices.Sorted(maps.Keys(v)) {
		name, _, ok := profileKey(file)
		if _, again := profiles[name]; !ok || again {
			continue
		}
		r := newReader(v.Get)
		r.prefix = name + "."
		p := Config{Proxy: c.Proxy, Cluster: c.Cluster, Dir: c.Dir}
		if err := r.tailnet(&p); err != nil {
			r.errs = append(r.errs, ProfileError{Profile: name, Err: err})
		}
		if profiles == nil {
			profiles = map[string]Config{}
		}
		profiles[name] = p
		errs = append(errs, r.errs...)
	}
	return profiles, errs
}

// tailnet reads the way into a tailnet, and is what checks it: package tailnet takes
// the values as they are. It returns what is wrong with it as a whole.
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
