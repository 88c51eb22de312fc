// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/plugintest"
)

// TestHealth: what a probe is told at each turn of a process's life.
func TestHealth(t *testing.T) {
	h := &health{}
	socket := filepath.Join(t.TempDir(), "nri.sock")
	var synchronized, earlier func(error)
	r := &registration{socket: socket, health: h, log: slog.New(slog.DiscardHandler)}
	for _, tt := range []struct {
		turn func()
		ok   bool
		text string
	}{
		{func() {}, false, "not ready: starting"},
		{func() { h.become(misconfigured, "TS_TAGS is bad") }, false, "not ready: TS_TAGS is bad"},
		{func() { h.standBy(func() string { return lacksRuntime(socket) }) }, false, "not ready to take over: nothing listens on the NRI socket " + socket},
		{func() { h.standBy(func() string { return lacksRuntime(filepath.Dir(socket)) }) }, true, "standing by: another process"},
		{func() { h.serves(fixedNodes(nil)) }, false, "not ready: waiting for the container runtime"},
		{func() { r.report(fs.ErrNotExist) }, false, "not ready: nothing listens on the NRI socket " + socket + ":"},
		{func() { synchronized = h.connect() }, false, "not ready: waiting"},
		{func() { synchronized(errors.New("disk\nfull")) }, false, "not ready: catching up with the runtime's pods failed: disk; full"},
		{func() { r.report(errClosed) }, false, "not ready: catching up with the runtime's pods failed: disk; full"},
		{func() { synchronized(nil) }, false, "not ready: catching up with the runtime's pods failed: disk; full"},
		{func() { earlier, synchronized = synchronized, h.connect() }, false, "not ready: waiting"},
		{func() { earlier(nil) }, false, "not ready: waiting"},
		{func() { synchronized(nil) }, true, "ready"},
		{func() { earlier(errors.New("late")) }, true, "ready"},
		{func() { h.note("a remark") }, true, "ready; a remark"},
		{func() { r.report(errClosed) }, false, "not ready: the runtime closed the connection; a remark"},
	} {
		tt.turn()
		if ok, text := h.ready(); ok != tt.ok || !strings.HasPrefix(text, tt.text) || strings.Contains(text, "\n") || len(text) > 250 {
			t.Errorf("ready is %v, %q, want %v, %q", ok, text, tt.ok, tt.text)
		}
	}
}

// TestLive: an engine that hangs is asked once, and is not live; any other is,
// whatever the runtime does.
func TestLive(t *testing.T) {
	h := &health{}
	if err := h.live(t.Context()); err != nil {
		t.Errorf("without an engine: %v", err)
	}
	asked, answer := make(chan struct{}, 10), make(chan struct{})
	h.serves(hangingPods(func() {
		asked <- struct{}{}
		<-answer
	}))
	short, cancel := context.WithCancel(t.Context())
	cancel()
	for range 3 {
		if err := h.live(short); err == nil {
			t.Error("it is live and hangs")
		}
	}
	plugintest.Receive(t, asked, "the question")
	if len(asked) != 0 {
		t.Error("it was asked again and again")
	}
	close(answer)
	if err := h.live(t.Context()); err != nil {
		t.Errorf("it answers again, but: %v", err)
	}
}

// hangingPods waits before it answers; what takes longer is not to be asked.
type hangingPods func()

func (p hangingPods) Status() []engine.NodeStatus { p(); return nil }
func (p hangingPods) Details() []engine.Detail    { panic("a probe measures nothing") }

// TestProbes over the socket, as the kubelet runs them.
func TestProbes(t *testing.T) {
	socket := startStatus(t, nil)
	ask := func(what string) (string, error) {
		var out strings.Builder
		err := run(context.Background(), plugintest.Environment(nil), []string{what, "-status-socket", socket}, &out, nil)
		return out.String(), err
	}
	if out, err := ask("ready"); err != nil || out != "ready\n" {
		t.Errorf("ready: %q, %v", out, err)
	}
	if out, err := ask("live"); err != nil || out != "live\n" {
		t.Errorf("live: %q, %v", out, err)
	}
	socket += "x"
	for _, what := range []string{"ready", "live"} {
		if out, err := ask(what); out != "" || !plugintest.ErrContains(err, "no process answers on "+socket) {
			t.Errorf("%s of nobody: %q, %v", what, out, err)
		}
	}
}
