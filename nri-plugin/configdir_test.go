// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/privileges"
	"tailscale-nri/nri-plugin/internal/settings"
)

func TestConfigDir(t *testing.T) {
	dir := t.TempDir()
	plugintest.MountConfig(t, dir, settings.AuthKey, " "+plugintest.Secret+"\n", settings.ClusterName, "of-the-file\n", settings.LogLevel, "debug")
	cfg, err := readConfig(plugintest.WithDir(dir, settings.ClusterName, "of-the-env"))
	if err != nil || cfg.AuthKey != plugintest.Secret || cfg.Cluster != "of-the-env" || cfg.LogLevel != slog.LevelDebug || cfg.Dir != dir {
		t.Errorf("got %+v, %v", cfg, err)
	}
	plain := t.TempDir() // as somebody without a kubelet has it
	for key, text := range map[string]string{settings.AuthKey: plugintest.Secret, ".swp": "x"} {
		if err := os.WriteFile(filepath.Join(plain, key), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if cfg, err := readConfig(plugintest.WithDir(plain)); err != nil || cfg.AuthKey != plugintest.Secret {
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
			_, err := readConfig(plugintest.WithDir(dir))
			if err == nil {
				t.Fatal("no error")
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(tt.want) {
				t.Fatalf("%d lines, want %d: %v", len(lines), len(tt.want), err)
			}
			for i, want := range tt.want {
				for w := range strings.SplitSeq(want, "|") {
					if !strings.Contains(lines[i], w) {
						t.Errorf("%q does not say %q", lines[i], w)
					}
				}
			}
			if strings.Contains(err.Error(), plugintest.Secret) {
				t.Error("the error shows the secret")
			}
		})
	}
}

func TestConfigDirUnreadable(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	if _, err := readConfig(plugintest.WithDir(missing)); !plugintest.ErrContains(err, missing) || !plugintest.ErrContains(err, "mount") || strings.Contains(err.Error(), "\n") {
		t.Errorf("a missing directory: %v", err)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, settings.Tags), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := readConfig(plugintest.WithDir(dir, settings.AuthKey, plugintest.Secret)); !plugintest.ErrContains(err, "reading "+settings.Tags+": ") || !plugintest.ErrContains(err, filepath.Join(dir, settings.Tags)) {
		t.Errorf("a directory for a file: %v", err)
	}
}

func TestStatusSocketOfABadConfiguration(t *testing.T) {
	dir := t.TempDir()
	plugintest.MountConfig(t, dir, settings.StatusSocket, "relative", settings.LogLevel, "loud", "bogus", "x")
	if got, err := statusSocket(plugintest.WithDir(dir, settings.StatusSocket, "/of/the/env\n")); got != "/of/the/env" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestChanged(t *testing.T) {
	before := values{settings.Tags: "tag:a", settings.ClusterName: "a", settings.AuthKey: "x"}
	after := values{settings.Tags: "tag:b", settings.ClusterName: "a", settings.OAuthID: "x"}
	if got, want := changed(before, after), []string{settings.AuthKey, settings.OAuthID, settings.Tags}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := changed(before, before); got != nil {
		t.Errorf("nothing has changed, got %q", got)
	}
}

// watched is a watch of dir whose process has begun with what is there.
func watched(t *testing.T, dir string) (*configWatch, *plugintest.LogBook) {
	t.Helper()
	book := plugintest.NewLogBook()
	w := &configWatch{getenv: plugintest.WithDir(dir), health: &health{}, log: slog.New(slog.NewTextHandler(book, nil)), every: time.Millisecond}
	began, _, err := loadConfig(w.getenv)
	if w.began = began; err != nil {
		w.waits = true
		w.complain(err, false)
	} else {
		w.health.connect()(nil)
	}
	return w, book
}

// TestBadChange: one that serves goes on with what it has, and says once what is
// wrong. It is ready all the same.
func TestBadChange(t *testing.T) {
	dir := t.TempDir()
	plugintest.MountConfig(t, dir, settings.AuthKey, plugintest.Secret)
	w, book := watched(t, dir)
	plugintest.MountConfig(t, dir, settings.AuthKey, plugintest.Secret, settings.LogLevel, "loud", settings.Tags, "x")
	for range 3 {
		if w.look() {
			t.Fatal("it begins anew with a bad configuration")
		}
	}
	if ok, text := w.health.ready(); !ok || !strings.Contains(text, `LOG_LEVEL is "loud"`) || strings.Contains(text, "\n") {
		t.Errorf("ready %v, %q", ok, text)
	}
	if n := book.Count("going on with the old one"); n != 2 {
		t.Errorf("the log says so %d times, want one for each value:\n%s", n, book)
	}
	plugintest.MountConfig(t, dir, settings.AuthKey, plugintest.Secret)
	if w.look() {
		t.Error("it begins anew with what it has")
	}
	if ok, text := w.health.ready(); !ok || text != readyText {
		t.Errorf("ready %v, %q", ok, text)
	}
	plugintest.MountConfig(t, dir, settings.AuthKey, plugintest.Secret+"2", settings.ClusterName, "new")
	if !w.look() {
		t.Error("it does not begin anew")
	}
	if book.Count("changed=\"CLUSTER_NAME TS_AUTHKEY\"") != 1 || book.Count(plugintest.Secret) != 0 {
		t.Errorf("the log says\n%s", book)
	}
}

// TestTokenGoes: it is no change of the configuration that a file goes which it
// names, and none that it comes back.
func TestTokenGoes(t *testing.T) {
	dir := t.TempDir()
	token := plugintest.WriteFile(t, t.TempDir(), "token", []byte(plugintest.Secret))
	plugintest.MountConfig(t, dir, settings.OAuthID, "id", settings.IDTokenFile, token)
	w, book := watched(t, dir)
	if err := os.Remove(token); err != nil {
		t.Fatal(err)
	}
	w.look()
	if ok, text := w.health.ready(); !ok || !strings.HasPrefix(text, readyText+"; another start would fail: ") || !strings.Contains(text, token) {
		t.Errorf("ready %v, %q", ok, text)
	}
	if book.Count("could not be used at another start") != 1 || book.Count("changed") != 0 {
		t.Errorf("the log says\n%s", book)
	}
	plugintest.MountConfig(t, dir, settings.OAuthID, "id", settings.IDTokenFile, token, settings.ClusterName, "other")
	w.look()
	if _, text := w.health.ready(); !strings.Contains(text, "a changed configuration is not used: ") || book.Count("going on with the old one") != 1 {
		t.Errorf("ready says %q, the log\n%s", text, book)
	}
	plugintest.MountConfig(t, dir, settings.OAuthID, "id", settings.IDTokenFile, token)
	plugintest.WriteFile(t, filepath.Dir(token), "token", []byte(plugintest.Secret))
	if _, text := w.health.ready(); w.look() {
		t.Errorf("it begins anew with what it has, %q", text)
	}
	if ok, text := w.health.ready(); !ok || text != readyText {
		t.Errorf("ready %v, %q", ok, text)
	}
}

// TestTokenComes: one that waits for a file alone does not speak of a change.
func TestTokenComes(t *testing.T) {
	dir := t.TempDir()
	token := filepath.Join(t.TempDir(), "token")
	plugintest.MountConfig(t, dir, settings.OAuthID, "id", settings.IDTokenFile, token)
	w, book := watched(t, dir)
	plugintest.WriteFile(t, filepath.Dir(token), "token", []byte(plugintest.Secret))
	if !w.look() || book.Count("waiting until it is mended") != 1 || book.Count("can be used now") != 1 || book.Count("has changed") != 0 {
		t.Errorf("the log says\n%s", book)
	}
}

// TestNoPrivileges: no file mends that, and nothing says so.
func TestNoPrivileges(t *testing.T) {
	book := plugintest.NewLogBook()
	w := &configWatch{health: &health{}, log: slog.New(slog.NewTextHandler(book, nil)), waits: true}
	w.complain(privileges.Error{Err: errors.New("missing capabilities NET_RAW")}, false)
	if ok, text := w.health.ready(); ok || text != "not ready: missing capabilities NET_RAW" {
		t.Errorf("ready %v, %q", ok, text)
	}
	if book.Count("waiting to be replaced") != 1 || book.Count("configuration") != 0 {
		t.Errorf("the log says\n%s", book)
	}
}

// TestMended: one that waits begins anew once there is something to begin with.
func TestMended(t *testing.T) {
	dir := t.TempDir()
	plugintest.MountConfig(t, dir, settings.LogLevel, "loud")
	w, book := watched(t, dir)
	for range 3 {
		w.look()
	}
	if ok, text := w.health.ready(); ok || !strings.HasPrefix(text, `not ready: LOG_LEVEL is "loud"`) || !strings.Contains(text, "; no credentials") {
		t.Errorf("ready %v, %q", ok, text)
	}
	if n := book.Count("waiting until it is mended"); n != 2 {
		t.Errorf("the log says so %d times:\n%s", n, book)
	}
	ended := make(chan error, 1)
	go func() { ended <- w.Run(t.Context()) }()
	plugintest.MountConfig(t, dir, settings.AuthKey, plugintest.Secret)
	if err := plugintest.Receive(t, ended, "the end of the wait"); !errors.Is(err, errRestart) {
		t.Errorf("ended with %v", err)
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
