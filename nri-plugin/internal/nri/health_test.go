// SPDX-License-Identifier: BSD-3-Clause

package nri

import (
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

// TestHealth: what a probe is told at each turn of a process's life.
func TestHealth(t *testing.T) {
	h := &statussocket.Health{}
	socket := filepath.Join(t.TempDir(), "nri.sock")
	var synchronized, earlier func(error)
	r := &Registration{Socket: socket, Health: h, Log: slog.New(slog.DiscardHandler)}
	for _, tt := range []struct {
		turn func()
		ok   bool
		text string
	}{
		{func() {}, false, "not ready: starting"},
		{func() { h.Become(statussocket.Misconfigured, "TS_TAGS is bad") }, false, "not ready: TS_TAGS is bad"},
		{func() { h.StandBy(func() string { return LacksRuntime(socket) }) }, false, "not ready to take over: nothing listens on the NRI socket " + socket},
		{func() { h.StandBy(func() string { return LacksRuntime(filepath.Dir(socket)) }) }, true, "standing by: another process"},
		{func() { h.Serves(plugintest.FixedNodes(nil)) }, false, "not ready: waiting for the container runtime"},
		{func() { r.report(fs.ErrNotExist) }, false, "not ready: nothing listens on the NRI socket " + socket + ":"},
		{func() { synchronized = h.Connect() }, false, "not ready: waiting"},
		{func() { synchronized(errors.New("disk\nfull")) }, false, "not ready: could not take over the runtime's list of pods: disk; full"},
		{func() { r.report(errClosed) }, false, "not ready: could not take over the runtime's list of pods: disk; full"},
		{func() { synchronized(nil) }, false, "not ready: could not take over the runtime's list of pods: disk; full"},
		{func() { earlier, synchronized = synchronized, h.Connect() }, false, "not ready: waiting"},
		{func() { earlier(nil) }, false, "not ready: waiting"},
		{func() { synchronized(nil) }, true, "ready"},
		{func() { earlier(errors.New("late")) }, true, "ready"},
		{func() { h.Note("a remark") }, true, "ready; a remark"},
		{func() { r.report(errClosed) }, false, "not ready: the runtime closed the connection; a remark"},
	} {
		tt.turn()
		if ok, text := h.Ready(); ok != tt.ok || !strings.HasPrefix(text, tt.text) || strings.Contains(text, "\n") || len(text) > 250 {
			t.Errorf("ready is %v, %q, want %v, %q", ok, text, tt.ok, tt.text)
		}
	}
}
