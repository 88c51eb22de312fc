// SPDX-License-Identifier: BSD-3-Clause

package config

import (
	"testing"

	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
)

func TestProfilesRefuse(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files []string
		want  []string // one for each line of the error
	}{
		{"half a client", []string{"prod." + settings.OAuthID, "id"}, []string{"profile prod (prod.TS_…): TS_OAUTH_CLIENT_ID is set but neither TS_OAUTH_CLIENT_SECRET"}},
		{"two ways", []string{"prod." + settings.OAuthID, "id", "prod." + settings.AuthKey, plugintest.Secret}, []string{"profile prod (prod.TS_…): two ways into the tailnet"}},
		{"no way", []string{"prod." + settings.LoginServer, "https://h.example.com"}, []string{"profile prod (prod.TS_…): no credentials: set "}},
		{"no token", []string{"prod." + settings.OAuthID, "id", "prod." + settings.IDTokenFile, "/nowhere/token"}, []string{"profile prod (prod.TS_…): looking for the file that TS_ID_TOKEN_FILE names"}},
		{"values", []string{"prod." + settings.AuthKey, plugintest.Secret, "prod." + settings.Tags, "x", "prod." + settings.AuthKeyTTL, "1", "b." + settings.AuthKey, plugintest.Secret, "b." + settings.LoginServer, "ftp://x"}, []string{
			"b.TS_LOGIN_SERVER is not a plain URL", `prod.AUTH_KEY_TTL is "1"`, `prod.TS_TAGS is "x": "x" is not a tag`,
		}},
		{"misspelt", []string{"prod.TS_AUTH_KEY", plugintest.Secret}, []string{`unknown key "prod.TS_AUTH_KEY" in |did you mean prod.TS_AUTHKEY?`}},
		{"not a profile's", []string{"prod." + settings.StateDir, "/x", "prod.CLUSTER_NAME", "x"}, []string{
			`unknown key "prod.CLUSTER_NAME"|a profile has TS_OAUTH_CLIENT_ID, `, `unknown key "prod.TS_STATE_DIR"|a profile has TS_OAUTH_CLIENT_ID, `,
		}},
		{"no label", []string{"Prod." + settings.AuthKey, plugintest.Secret}, []string{`unknown key "Prod.TS_AUTHKEY"`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			plugintest.MountConfig(t, dir, append(tt.files, settings.AuthKey, plugintest.Secret)...)
			_, err := Read(plugintest.WithDir(dir))
			expectLines(t, err, tt.want)
		})
	}
}
