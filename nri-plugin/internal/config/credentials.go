// SPDX-License-Identifier: BSD-3-Clause

package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"tailscale-nri/nri-plugin/internal/errtext"
	"tailscale-nri/nri-plugin/internal/settings"
)

const oauthVars = settings.OAuthID + " and " + settings.OAuthSecret

// checkCredentials returns an error unless there is exactly one way into the tailnet.
func checkCredentials(c Config) error {
	oauth := c.OAuthID != "" || c.OAuthSecret != "" || c.IDTokenFile != ""
	switch {
	case oauth && c.AuthKey != "":
		return fmt.Errorf("two ways into the tailnet are set, %s as well as %s: keep one and unset the other", oauthSet(c), settings.AuthKey)
	case !oauth && c.AuthKey == "":
		return fmt.Errorf("no credentials: set %s (or %s in place of the secret), or %s (with %s for a control server of your own), %s",
			oauthVars, settings.IDTokenFile, settings.AuthKey, settings.LoginServer, c.places())
	case oauth && c.OAuthID == "":
		return fmt.Errorf("%s is set but %s is not: set both, %s", oauthSet(c), settings.OAuthID, c.places())
	case oauth && c.OAuthSecret == "" && c.IDTokenFile == "":
		return fmt.Errorf("%s is set but neither %s nor %s: set one of the two, %s", settings.OAuthID, settings.OAuthSecret, settings.IDTokenFile, c.places())
	case c.OAuthSecret != "" && c.IDTokenFile != "":
		return fmt.Errorf("%s and %s are both set: keep one and unset the other", settings.OAuthSecret, settings.IDTokenFile)
	}
	return errors.Join(checkKinds(c), checkTokenFile(c.IDTokenFile))
}

// checkKinds looks whether a secret stands where one of another kind belongs.
func checkKinds(c Config) error {
	switch {
	case strings.HasPrefix(c.OAuthSecret, "tskey-auth-"):
		return fmt.Errorf("%s holds an auth key: put it into %s, or take the secret of an OAuth client", settings.OAuthSecret, settings.AuthKey)
	case strings.HasPrefix(c.AuthKey, "tskey-client-"):
		return fmt.Errorf("%s holds the secret of an OAuth client: put it into %s and its ID into %s", settings.AuthKey, settings.OAuthSecret, settings.OAuthID)
	}
	return nil
}

// oauthSet names those variables of an OAuth client that are set.
func oauthSet(c Config) string {
	var set []string
	for _, v := range []struct{ key, value string }{
		{settings.OAuthID, c.OAuthID}, {settings.OAuthSecret, c.OAuthSecret}, {settings.IDTokenFile, c.IDTokenFile},
	} {
		if v.value != "" {
			set = append(set, v.key)
		}
	}
	return strings.Join(set, " and ")
}

// places says where variables may be set.
func (c Config) places() string {
	if c.Dir == "" {
		return "in the environment"
	}
	return "in the environment, or as keys of the Secret or the ConfigMap mounted at " + c.Dir
}

// ErrNoToken is the one error that can arise without a change of the configuration.
var ErrNoToken = errors.New("mount the pod's projected serviceAccountToken volume there")

// checkTokenFile looks whether the kubelet has put a token there. It is called time and
// again, so it does not read the file: the engine reports a bad token, and the API
// one that is refused.
func checkTokenFile(path string) error {
	if path == "" {
		return nil
	}
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%s is %q: write an absolute path, and %w", settings.IDTokenFile, errtext.Clip(path), ErrNoToken)
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return fmt.Errorf("looking for the file that %s names: %w: %w", settings.IDTokenFile, err, ErrNoToken)
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s names %s, which is not a regular file: %w", settings.IDTokenFile, errtext.Clip(path), ErrNoToken)
	case info.Size() == 0:
		return fmt.Errorf("%s names %s, which is empty: %w", settings.IDTokenFile, errtext.Clip(path), ErrNoToken)
	}
	return nil
}
