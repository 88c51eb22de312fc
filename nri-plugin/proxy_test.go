// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"log/slog"
	"testing"

	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/statussocket"
	"tailscale-nri/nri-plugin/internal/supervisor"
)

// TestProxyInTheLog: where it is, and not who we are to it. A key of the
// directory sets it as the environment does.
func TestProxyInTheLog(t *testing.T) {
	dir := t.TempDir()
	plugintest.MountConfig(t, dir, settings.AuthKey, plugintest.Secret, settings.HTTPSProxy, "http://u:"+plugintest.Secret+"@proxy:3128\n", settings.NoProxy, ".svc")
	cfg, err := config.Read(plugintest.WithDir(dir, settings.HTTPProxy, "other:80"))
	if err != nil || config.ProxyHosts(cfg.Proxy) != "proxy:3128,other:80" || cfg.Proxy.NoProxy != ".svc" {
		t.Errorf("%v, proxies %q", err, config.ProxyHosts(cfg.Proxy))
	}
	book := plugintest.NewLogBook()
	d := &daemon{cfg: cfg, health: &statussocket.Health{}, log: slog.New(slog.NewTextHandler(book, nil)), ownPace: true, up: supervisor.FindParent(plugintest.Environment(nil))}
	d.logStart()
	if book.Count(`proxy="proxy:3128,other:80"`)+book.Count("proxy=proxy:3128,other:80") != 1 || book.Count(plugintest.Secret) != 0 {
		t.Errorf("the log says %s", book)
	}
}
