// SPDX-License-Identifier: BSD-3-Clause

package config

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
)

func TestConfigDir(t *testing.T) {
	dir := t.TempDir()
	plugintest.MountConfig(t, dir, settings.AuthKey, " "+plugintest.Secret+"\n", settings.ClusterName, "of-the-file\n", settings.LogLevel, "debug")
	cfg, err := Read(plugintest.WithDir(dir, settings.ClusterName, "of-the-env"))
	if err != nil || cfg.AuthKey != plugintest.Secret || cfg.Cluster != "of-the-env" || cfg.LogLevel != slog.LevelDebug || cfg.Dir != dir {
		t.Errorf("got %+v, %v", cfg, err)
	}
	plain := t.TempDir() // as somebody without a kubelet has it
	for key, text := range map[string]string{settings.AuthKey: plugintest.Secret, ".swp": "x"} {
		if err := os.WriteFile(filepath.Join(plain, key), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if cfg, err := Read(plugintest.WithDir(plain)); err != nil || cfg.AuthKey != plugintest.Secret {
		t.Errorf("a plain directory: got %+v, %v", cfg, err)
	}
}

func TestConfigDirRefuses(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files []string
		want  []string // one for each line of the error
	}{
		{"nothing", nil, []string{"no credentials: set TS_OAUTH_CLIENT_ID|in the environment, or as keys of the Secret or the ConfigMap mounted at "}},
		{"bad value", []string{settings.AuthKey, plugintest.Secret, settings.LogLevel, "loud"}, []string{`LOG_LEVEL is "loud"`}},
		{"misspelt", []string{settings.AuthKey, plugintest.Secret, "TS_TAG", plugintest.Secret}, []string{`unknown key "TS_TAG" in |did you mean TS_TAGS?`}},
		{"another program's", []string{settings.AuthKey, plugintest.Secret, "client_secret", plugintest.Secret}, []string{`unknown key "client_secret"|did you mean TS_OAUTH_CLIENT_SECRET?`}},
		{"unlike any", []string{settings.AuthKey, plugintest.Secret, "colour", plugintest.Secret}, []string{`unknown key "colour"|-help`}},
		{"like one of the environment's", []string{settings.AuthKey, plugintest.Secret, "CONFIG_DIR", "/x", "TS_STATE_DIRS", "/x"}, []string{
			`unknown key "CONFIG_DIR" in |: tailscale-nri -help`, `unknown key "TS_STATE_DIRS" in |: tailscale-nri -help`,
		}},
		{"itself", []string{settings.AuthKey, plugintest.Secret, settings.ConfigDir, "/x"}, []string{`key "TS_CONFIG_DIR" in |environment`}},
		{"of a mount", []string{settings.AuthKey, plugintest.Secret, settings.StateDir, "/x", settings.NRISocket, "x"}, []string{
			`key "NRI_SOCKET" in |environment`, `key "TS_STATE_DIR" in |environment`,
		}},
		{"several", []string{"CLUSTER", "x", "TS_AUTH_KEY", plugintest.Secret, settings.AuthKeyTTL, "5"}, []string{
			"did you mean CLUSTER_NAME?", "did you mean TS_AUTHKEY?", `AUTH_KEY_TTL is "5"`, "no credentials",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			plugintest.MountConfig(t, dir, tt.files...)
			_, err := Read(plugintest.WithDir(dir))
			expectLines(t, err, tt.want)
		})
	}
}

func TestConfigDirUnreadable(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	if _, err := Read(plugintest.WithDir(missing)); !plugintest.ErrContains(err, missing) || !plugintest.ErrContains(err, "mount") || strings.Contains(err.Error(), "\n") {
		t.Errorf("a missing directory: %v", err)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, settings.Tags), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(plugintest.WithDir(dir, settings.AuthKey, plugintest.Secret)); !plugintest.ErrContains(err, "reading "+settings.Tags+": ") || !plugintest.ErrContains(err, filepath.Join(dir, settings.Tags)) {
		t.Errorf("a directory for a file: %v", err)
	}
}

func TestStatusSocketOfABadConfiguration(t *testing.T) {
	dir := t.TempDir()
	plugintest.MountConfig(t, dir, settings.StatusSocket, "relative", settings.LogLevel, "loud", "bogus", "x")
	if got, err := StatusSocket(plugintest.WithDir(dir, settings.StatusSocket, "/of/the/env\n")); got != "/of/the/env" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestChanged(t *testing.T) {
	before := Values{settings.Tags: "tag:a", settings.ClusterName: "a", settings.AuthKey: "x"}
	after := Values{settings.Tags: "tag:b", settings.ClusterName: "a", settings.OAuthID: "x"}
	if got, want := Changed(before, after), []string{settings.AuthKey, settings.OAuthID, settings.Tags}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := Changed(before, before); got != nil {
		t.Errorf("nothing has changed, got %q", got)
	}
}

// TestTornReading: what is read is of one moment, however often the files change.
func TestTornReading(t *testing.T) {
	dir := t.TempDir()
	swap := func(i int) {
		plugintest.MountConfig(t, dir, settings.ClusterName, fmt.Sprint("c", i), settings.Tags, fmt.Sprint("tag:c", i))
		old, _ := filepath.Glob(filepath.Join(dir, "..2026_*"))
		now, _ := os.Readlink(filepath.Join(dir, "..data"))
		for _, o := range old {
			if filepath.Base(o) != now {
				os.RemoveAll(o)
			}
		}
	}
	swap(0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 300 {
			swap(i)
		}
	}()
	for over := false; !over; {
		select {
		case <-done:
			over = true
		default:
		}
		v, err := readConfigDir(dir)
		if err != nil || "tag:"+v[settings.ClusterName] != v[settings.Tags] {
			t.Fatalf("%q, %v", v, err)
		}
	}
}

// expectLines expects an error of as many lines as want has, and in each what want has
// between the bars, and no secret.
func expectLines(t *testing.T, err error, want []string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d lines, want %d: %v", len(lines), len(want), err)
	}
	for i, parts := range want {
		for part := range strings.SplitSeq(parts, "|") {
			if !strings.Contains(lines[i], part) {
				t.Errorf("%q does not say %q", lines[i], part)
			}
		}
	}
	if strings.Contains(err.Error(), plugintest.Secret) {
		t.Error("the error shows the secret")
	}
}
