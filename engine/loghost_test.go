// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"log/slog"
	"testing"
	"time"

	"tailscale-nri/engine/internal/nstest"
)

// What the watch of the host's network writes of each route of the host is detail, as
// all that tailscale.com writes.
func TestHostWatchLogsDetail(t *testing.T) {
	w := newWorld(t)
	var info, debug logBuffer
	w.boot(func(c *Config) {
		c.Logger = slog.New(slog.NewMultiHandler(slog.NewTextHandler(&info, nil),
			slog.NewTextHandler(&debug, &slog.HandlerOptions{Level: slog.LevelDebug})))
	})
	nstest.HostLink(t, "loghost0", "192.0.2.81/32")
	for late := time.Now().Add(20 * time.Second); debug.count("192.0.2.81") == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal("the log has nothing of the host's new address, at any level")
		}
	}
	if info.count("192.0.2.81") > 0 {
		t.Error("at level info the log has a route of the host")
	}
}
