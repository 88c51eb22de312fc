// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/privileges"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

// watched is a watch of dir whose process has begun with what is there.
func watched(t *testing.T, dir string) (*configWatch, *plugintest.LogBook) {
	t.Helper()
	book := plugintest.NewLogBook()
	w := &configWatch{getenv: plugintest.WithDir(dir), health: &statussocket.Health{}, log: slog.New(slog.NewTextHandler(book, nil)), every: time.Millisecond}
	began, _, err := config.Load(w.getenv)
	if w.began = began; err != nil {
		w.waits = true
		w.complain(err, false)
	} else {
		w.health.Connect()(nil)
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
			t.Fatal("it restarts with a bad configuration")
		}
	}
	if ok, text := w.health.Ready(); !ok || !strings.Contains(text, `LOG_LEVEL is "loud"`) || strings.Contains(text, "\n") {
		t.Errorf("ready %v, %q", ok, text)
	}
	if n := book.Count("going on with the old one"); n != 2 {
		t.Errorf("the log says so %d times, want one for each value:\n%s", n, book)
	}
	plugintest.MountConfig(t, dir, settings.AuthKey, plugintest.Secret)
	if w.look() {
		t.Error("it restarts with what it has")
	}
	if ok, text := w.health.Ready(); !ok || text != statussocket.ReadyText {
		t.Errorf("ready %v, %q", ok, text)
	}
	plugintest.MountConfig(t, dir, settings.AuthKey, plugintest.Secret+"2", settings.ClusterName, "new")
	if !w.look() {
		t.Error("it does not restart")
	}
	if book.Count("changed=\"CLUSTER_NAME TS_AUTHKEY\"") != 1 || book.Count(plugintest.Secret) != 0 {
		t.Errorf("the log says\n%s", book)
	}
}

// TestTokenGoes: the configuration does not change when a file disappears which it
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
	if ok, text := w.health.Ready(); !ok || !strings.HasPrefix(text, statussocket.ReadyText+"; a restart would fail: ") || !strings.Contains(text, token) {
		t.Errorf("ready %v, %q", ok, text)
	}
	if book.Count("has become invalid") != 1 || book.Count("changed") != 0 {
		t.Errorf("the log says\n%s", book)
	}
	plugintest.MountConfig(t, dir, settings.OAuthID, "id", settings.IDTokenFile, token, settings.ClusterName, "other")
	w.look()
	if _, text := w.health.Ready(); !strings.Contains(text, "a changed configuration is not used: ") || book.Count("going on with the old one") != 1 {
		t.Errorf("ready says %q, the log\n%s", text, book)
	}
	plugintest.MountConfig(t, dir, settings.OAuthID, "id", settings.IDTokenFile, token)
	plugintest.WriteFile(t, filepath.Dir(token), "token", []byte(plugintest.Secret))
	if _, text := w.health.Ready(); w.look() {
		t.Errorf("it restarts with what it has, %q", text)
	}
	if ok, text := w.health.Ready(); !ok || text != statussocket.ReadyText {
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
	if !w.look() || book.Count("waiting until it is fixed") != 1 || book.Count("can be used now") != 1 || book.Count("has changed") != 0 {
		t.Errorf("the log says\n%s", book)
	}
}

// TestNoPrivileges: no change of a file fixes that, and no message says it would.
func TestNoPrivileges(t *testing.T) {
	book := plugintest.NewLogBook()
	w := &configWatch{health: &statussocket.Health{}, log: slog.New(slog.NewTextHandler(book, nil)), waits: true}
	w.complain(privileges.Error{Err: errors.New("missing capabilities NET_RAW")}, false)
	if ok, text := w.health.Ready(); ok || text != "not ready: missing capabilities NET_RAW" {
		t.Errorf("ready %v, %q", ok, text)
	}
	if book.Count("waiting to be replaced") != 1 || book.Count("configuration") != 0 {
		t.Errorf("the log says\n%s", book)
	}
}

// TestFixed: a process that waits restarts once it has a usable configuration.
func TestFixed(t *testing.T) {
	dir := t.TempDir()
	plugintest.MountConfig(t, dir, settings.LogLevel, "loud")
	w, book := watched(t, dir)
	for range 3 {
		w.look()
	}
	if ok, text := w.health.Ready(); ok || !strings.HasPrefix(text, `not ready: LOG_LEVEL is "loud"`) || !strings.Contains(text, "; no credentials") {
		t.Errorf("ready %v, %q", ok, text)
	}
	if n := book.Count("waiting until it is fixed"); n != 2 {
		t.Errorf("the log says so %d times:\n%s", n, book)
	}
	ended := make(chan error, 1)
	go func() { ended <- w.Run(t.Context()) }()
	plugintest.MountConfig(t, dir, settings.AuthKey, plugintest.Secret)
	if err := plugintest.Receive(t, ended, "the end of the wait"); !errors.Is(err, errRestart) {
		t.Errorf("ended with %v", err)
	}
}
