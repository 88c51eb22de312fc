// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/podspec"
	"tailscale-nri/nri-plugin/internal/settings"
)

func TestProfiles(t *testing.T) {
	dir := t.TempDir()
	plugintest.MountConfig(t, dir, settings.AuthKey, plugintest.Secret, settings.Tags, "tag:a", settings.HTTPSProxy, "http://proxy.example.com:3128", settings.ClusterName, "mine",
		"prod."+settings.OAuthID, "id", "prod."+settings.OAuthSecret, plugintest.Secret+"\n", "prod."+settings.Tags, "tag:prod,tag:web", "prod."+settings.AuthKeyTTL, "1h",
		"eu-1."+settings.AuthKey, plugintest.Secret, "eu-1."+settings.LoginServer, "https://headscale.example.com/", "empty."+settings.AuthKey, "")
	cfg, err := config.Read(plugintest.WithDir(dir))
	if err != nil || len(cfg.Profiles) != 2 {
		t.Fatalf("got %+v, %v", cfg.Profiles, err)
	}
	prod, eu := cfg.Profiles["prod"], cfg.Profiles["eu-1"]
	if prod.OAuthSecret != plugintest.Secret || prod.APIURL != "https://api.tailscale.com" || prod.AuthKeyTTL != time.Hour || prod.AuthKey != "" ||
		prod.Cluster != "mine" || prod.Proxy != cfg.Proxy || !slices.Equal(prod.Tags, []string{"tag:prod", "tag:web"}) {
		t.Errorf("prod is %+v", prod)
	}
	if eu.AuthKey != plugintest.Secret || eu.LoginServer != "https://headscale.example.com" || eu.Tags != nil || eu.AuthKeyTTL != 5*time.Minute {
		t.Errorf("eu-1 is %+v", eu)
	}
	d := defaultsOf(cfg)
	want := map[string]podspec.Defaults{"prod": {Tags: []string{"tag:prod", "tag:web"}}, "eu-1": {Static: true}}
	if !reflect.DeepEqual(d.Profiles, want) || !d.Static {
		t.Errorf("defaults are %+v", d)
	}
	var log strings.Builder
	tn, err := newTailnets(cfg, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil || len(tn.profiles) != 2 || tn.profiles["eu-1"].ControlURL() != "https://headscale.example.com" || tn.main.ControlURL() != "" {
		t.Errorf("tailnets %v, %v", tn, err)
	}
	if strings.Count(log.String(), "profile=eu-1") != 1 || strings.Contains(log.String(), "profile=prod") || strings.Contains(log.String(), plugintest.Secret) {
		t.Errorf("the log says %s", &log)
	}
	if cfg, err := config.Read(plugintest.Environment(map[string]string{settings.AuthKey: plugintest.Secret})); err != nil || cfg.Profiles != nil {
		t.Errorf("without any: %+v, %v", cfg.Profiles, err)
	}
}

// TestProfileComesAndGoes: the process starts again with a profile that is new, and
// without one that is gone.
func TestProfileComesAndGoes(t *testing.T) {
	dir := t.TempDir()
	plugintest.MountConfig(t, dir, settings.AuthKey, plugintest.Secret)
	w, book := watched(t, dir)
	plugintest.MountConfig(t, dir, settings.AuthKey, plugintest.Secret, "prod."+settings.AuthKey, plugintest.Secret)
	if !w.look() || book.Count("changed=prod.TS_AUTHKEY") != 1 || book.Count(plugintest.Secret) != 0 {
		t.Errorf("the log says\n%s", book)
	}
}
