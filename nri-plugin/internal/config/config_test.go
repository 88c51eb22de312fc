// SPDX-License-Identifier: BSD-3-Clause

package config

import (
	"log/slog"
	"maps"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/sys/unix"

	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
)

func TestReadConfig(t *testing.T) {
	standard := Config{
		OAuthID: "id", OAuthSecret: plugintest.Secret,
		APIURL: "https://api.tailscale.com", AuthKeyTTL: 5 * time.Minute, SweepAfter: 168 * time.Hour,
		Cluster: "k8s", Tags: []string{"tag:k8s-pod"},
		StateDir: "/var/lib/tailscale-nri", StatusSocket: "/run/tailscale-nri/status.sock",
		Handlers:  []string{"runc", "crun", "youki", "nvidia", "nvidia-cdi", "nvidia-legacy", "nvidia-experimental"},
		NRISocket: "/var/run/nri/nri.sock", LogLevel: slog.LevelInfo,
	}
	with := func(change func(*Config)) Config {
		c := standard
		change(&c)
		return c
	}
	oauth := map[string]string{settings.OAuthID: "id", settings.OAuthSecret: plugintest.Secret + "\n"}
	for _, tt := range []struct {
		name string
		base map[string]string
		vars map[string]string
		want Config
	}{
		{"defaults", oauth, nil, standard},
		{"empty is not set", oauth, map[string]string{settings.ClusterName: "", settings.APIURL: " ", settings.AuthKey: ""}, standard},
		{"all", oauth, map[string]string{
			settings.LoginServer: "https://hs.example.com/", settings.APIURL: "http://127.0.0.1:1/api", settings.AuthKeyTTL: "90s", settings.SweepAfter: "0",
			settings.ClusterName: "prod-eu", settings.Tags: "tag:a, tag:b", settings.StateDir: "/s/", settings.StatusSocket: "/t", settings.NRISocket: "/n",
			settings.LogLevel: "DEBUG", settings.LogFormat: "json", settings.LocalDelivery: "false",
			settings.RuntimeHandlers: "runc, mine", settings.PodUID: "u", "https_proxy": "p:3128", settings.HTTPProxy: "http://u:p@q/", settings.NoProxy: "a,b",
		}, Config{
			OAuthID: "id", OAuthSecret: plugintest.Secret, LoginServer: "https://hs.example.com", APIURL: "http://127.0.0.1:1/api",
			AuthKeyTTL: 90 * time.Second, Cluster: "prod-eu", Tags: []string{"tag:a", "tag:b"},
			StateDir: "/s", StatusSocket: "/t", NRISocket: "/n", LogLevel: slog.LevelDebug, LogJSON: true, NoLocal: true,
			Handlers: []string{"runc", "mine"}, PodUID: "u",
			Proxy: httpproxy.Config{HTTPSProxy: "http://p:3128", HTTPProxy: "http://u:p@q/", NoProxy: "a,b"},
		}},
		{"auth key brings its tags", map[string]string{settings.AuthKey: plugintest.Secret}, nil,
			with(func(c *Config) { c.OAuthID, c.OAuthSecret, c.AuthKey, c.Tags = "", "", plugintest.Secret, nil })},
		{"auth key with tags", map[string]string{settings.AuthKey: plugintest.Secret, settings.Tags: "tag:a"}, nil,
			with(func(c *Config) {
				c.OAuthID, c.OAuthSecret, c.AuthKey, c.Tags = "", "", plugintest.Secret, []string{"tag:a"}
			})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			vars := maps.Clone(tt.base)
			maps.Copy(vars, tt.vars)
			got, err := Read(plugintest.Environment(vars))
			if err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, %v\nwant %+v", got, err, tt.want)
			}
		})
	}
}

func TestReadConfigRefuses(t *testing.T) {
	oauth := func(more ...string) []string {
		return append([]string{settings.OAuthID, "id", settings.OAuthSecret, plugintest.Secret}, more...)
	}
	for _, tt := range []struct {
		name string
		vars []string
		want string // each word group between | is in the error's one line
	}{
		{"no credentials", nil, "TS_OAUTH_CLIENT_ID and TS_OAUTH_CLIENT_SECRET|TS_ID_TOKEN_FILE|TS_AUTHKEY|set|in the environment"},
		{"both ways", oauth(settings.AuthKey, plugintest.Secret), "two ways|TS_AUTHKEY|unset"},
		{"ID alone", []string{settings.OAuthID, "id"}, "neither TS_OAUTH_CLIENT_SECRET nor TS_ID_TOKEN_FILE|in the environment"},
		{"token file alone", []string{settings.IDTokenFile, "/token"}, "TS_ID_TOKEN_FILE is set but TS_OAUTH_CLIENT_ID is not"},
		{"secret and token file", oauth(settings.IDTokenFile, "/token"), "TS_OAUTH_CLIENT_SECRET and TS_ID_TOKEN_FILE|unset"},
		{"key and token file", []string{settings.IDTokenFile, "/token", settings.AuthKey, plugintest.Secret}, "two ways|TS_ID_TOKEN_FILE as well as TS_AUTHKEY"},
		{"no token", []string{settings.OAuthID, "id", settings.IDTokenFile, "/nowhere/token"}, "TS_ID_TOKEN_FILE|/nowhere/token|serviceAccountToken"},
		{"a device for a token", []string{settings.OAuthID, "id", settings.IDTokenFile, "/dev/null"}, "TS_ID_TOKEN_FILE|/dev/null, which is not a regular file|serviceAccountToken"},
		{"relative token", []string{settings.OAuthID, "id", settings.IDTokenFile, "token"}, `TS_ID_TOKEN_FILE is "token"|absolute`},
		{"secret alone", []string{settings.OAuthSecret, plugintest.Secret}, "TS_OAUTH_CLIENT_ID is not"},
		{"key as secret", []string{settings.OAuthID, "id", settings.OAuthSecret, "tskey-auth-" + plugintest.Secret}, "TS_OAUTH_CLIENT_SECRET holds an auth key|TS_AUTHKEY"},
		{"secret as key", []string{settings.AuthKey, "tskey-client-" + plugintest.Secret}, "TS_AUTHKEY holds the secret|TS_OAUTH_CLIENT_SECRET"},
		{"login server", oauth(settings.LoginServer, "hs.example.com"), "TS_LOGIN_SERVER|https://host"},
		{"API URL with password", oauth(settings.APIURL, "https://u:"+plugintest.Secret+"@host"), "TS_API_URL|without user"},
		{"API URL that is none", oauth(settings.APIURL, "https://"+plugintest.Secret+"%zz"), "TS_API_URL|https://host"},
		{"sweeps too soon", oauth(settings.SweepAfter, "5m"), `TS_SWEEP_AFTER is "5m"|1h0m0s at least|0 to keep all`},
		{"no duration", oauth(settings.AuthKeyTTL, "5"), `AUTH_KEY_TTL is "5"|such as 5m`},
		{"short duration", oauth(settings.AuthKeyTTL, "1s"), `AUTH_KEY_TTL is "1s"|from 10s`},
		{"long duration", oauth(settings.AuthKeyTTL, "2161h"), `AUTH_KEY_TTL is "2161h"|2160h`},
		{"cluster", oauth(settings.ClusterName, "My Cluster"), `CLUSTER_NAME is "My Cluster"|dashes`},
		{"long cluster", oauth(settings.ClusterName, strings.Repeat("a", 33)), "CLUSTER_NAME|shorten it to 32"},
		{"tags", oauth(settings.Tags, "k8s"), `TS_TAGS is "k8s"|tag:name`},
		{"relative path", oauth(settings.StateDir, "state"), `TS_STATE_DIR is "state"|absolute`},
		{"log level", oauth(settings.LogLevel, "loud"), `LOG_LEVEL is "loud"|trace, debug, info`},
		{"proxy that is a path", oauth(settings.HTTPSProxy, "/"+plugintest.Secret), "HTTPS_PROXY|http://user:password@host:port"},
		{"proxy of another kind", oauth(settings.HTTPProxy, "ftp://u:"+plugintest.Secret+"@host"), "HTTP_PROXY|http://host:port"},
		{"proxy with a password that breaks it", oauth(settings.HTTPSProxy, "http://u:"+plugintest.Secret+"%zz@host"), "HTTPS_PROXY|%XX"},
		{"runtime handlers", oauth(settings.RuntimeHandlers, "runc,Kata"), `TS_RUNTIME_HANDLERS is "runc,Kata"|"Kata" is not the name`},
		{"local delivery", oauth(settings.LocalDelivery, "yes"), `TS_LOCAL_DELIVERY is "yes"|true, false`},
		{"range that is none", oauth(settings.ClusterRanges, "10.0.0.0/8,pods"), `TS_CLUSTER_RANGES is "pods"|such as 100.64.0.0/13`},
		{"range of another form", oauth(settings.ClusterRanges, "10.0.0.1/8"), `TS_CLUSTER_RANGES is "10.0.0.1/8"|write 10.0.0.0/8`},
		{"range of all", oauth(settings.ClusterRanges, "0.0.0.0/0"), `TS_CLUSTER_RANGES is "0.0.0.0/0"|every address`},
		{"mapped range", oauth(settings.ClusterRanges, "::ffff:10.0.0.0/104"), `TS_CLUSTER_RANGES is|such as`},
		{"log format", oauth(settings.LogFormat, "xml"), `LOG_FORMAT is "xml"|text, json`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Read(plugintest.Environment(plugintest.Pairs(tt.vars)))
			if err == nil {
				t.Fatal("no error")
			}
			for w := range strings.SplitSeq(tt.want, "|") {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than a line: %q", err)
			}
			if strings.Contains(err.Error(), plugintest.Secret) {
				t.Errorf("the error shows the secret")
			}
		})
	}
}

// TestTokenFile: the kubelet's links are followed, and nothing is waited for.
func TestTokenFile(t *testing.T) {
	dir := t.TempDir()
	plugintest.MountConfig(t, dir, "token", plugintest.Secret, "empty", "")
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"token": "", "empty": "which is empty", "pipe": "not a regular file", "none": "no such file"} {
		_, err := Read(plugintest.Environment(plugintest.Pairs([]string{settings.OAuthID, "id", settings.IDTokenFile, filepath.Join(dir, name)})))
		if want == "" && err != nil || want != "" && !plugintest.ErrContains(err, want) {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
}

func TestReadConfigNamesEachBadValue(t *testing.T) {
	_, err := Read(plugintest.Environment(plugintest.Pairs([]string{settings.AuthKeyTTL, "x", settings.Tags, "y", settings.StateDir, "z"})))
	if err == nil || strings.Count(err.Error(), "\n") != 3 {
		t.Errorf("want four lines, one each: %v", err)
	}
}
