// SPDX-License-Identifier: BSD-3-Clause

package nri

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

// TestRuntimeRestarts: the plugin registers with each runtime that comes up on
// the socket, and says so once for each.
func TestRuntimeRestarts(t *testing.T) {
	dir, pods := t.TempDir(), plugintest.NewFakePods()
	var book *plugintest.LogBook
	for i := range 3 {
		kill := plugintest.StartRuntimeProcess(t, dir)
		if i == 0 {
			book = startPlugin(t, dir, pods)
		}
		plugintest.Receive(t, pods.Synced, "Sync")
		if got := book.Count("registered with the container runtime"); got < i+1 {
			t.Errorf("%d registrations in the log, want %d", got, i+1)
		}
		kill()
		book.Wait(t, "nothing listens on the NRI socket", i+1)
	}
	if got := book.Count("runtime=containerd version=v2.4.2"); got != 3 {
		t.Errorf("%d registrations, want 3", got)
	}
}

// TestSocketAbsent: one line says what to do, however many tries there are.
func TestSocketAbsent(t *testing.T) {
	dir, pods := t.TempDir(), plugintest.NewFakePods()
	book := startPlugin(t, dir, pods)
	book.Wait(t, "not registered", 1)
	// The plugin has tried again once it takes the next socket.
	plugintest.StartRuntime(t, dir).WaitSynced(t)
	plugintest.Receive(t, pods.Synced, "Sync")
	for _, text := range []string{
		"nothing listens on the NRI socket " + filepath.Join(dir, "nri.sock"),
		"config.toml.tmpl", "NRI_SOCKET",
		"not registered",
	} {
		if got := book.Count(text); got != 1 {
			t.Errorf("the log says %q %d times", text, got)
		}
	}
}

// TestStaleSocket: a file that nobody listens on is as good as none.
func TestStaleSocket(t *testing.T) {
	dir := t.TempDir()
	plugintest.StartRuntimeProcess(t, dir)()
	if _, err := os.Stat(filepath.Join(dir, "nri.sock")); err != nil {
		t.Fatalf("the killed runtime left no socket: %v", err)
	}
	startPlugin(t, dir, plugintest.NewFakePods()).Wait(t, "nothing listens on the NRI socket", 1)
}

// TestRuntimeDies at once, or between the registration and the configuration,
// where NRI's stub alone would wait forever. Several rounds, since now and then
// the stub sees the end before the answer.
func TestRuntimeDies(t *testing.T) {
	for name, serve := range map[string]func(net.Conn) error{
		"at once":            func(net.Conn) error { return nil },
		"after registration": registerOnce,
	} {
		t.Run(name, func(t *testing.T) {
			dir, pods := t.TempDir(), plugintest.NewFakePods()
			socket := filepath.Join(dir, "nri.sock")
			book := startPlugin(t, dir, pods)
			for range 10 {
				if err := plugintest.Receive(t, serveAndHangUp(t, socket, serve), "a connection"); err != nil {
					t.Fatal(err)
				}
			}
			plugintest.StartRuntime(t, dir).WaitSynced(t)
			plugintest.Receive(t, pods.Synced, "Sync")
			if book.Count("registering on "+socket) == 0 {
				t.Errorf("the log has no word of it:\n%s", book.String())
			}
		})
	}
}

// TestRunEndsWithContext in each state that a registration can be in.
func TestRunEndsWithContext(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	r := &Registration{
		Socket: filepath.Join(dir, "nri.sock"), Log: log,
		Plugin:  &Plugin{Pods: plugintest.NewFakePods(), Log: log},
		Health:  &statussocket.Health{},
		minWait: time.Hour, maxWait: time.Hour,
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	cancel()
	if err := plugintest.Receive(t, done, "the end while waiting for a socket"); err != nil {
		t.Error(err)
	}
	if err := r.Run(ctx); err != nil {
		t.Errorf("started when all is over: %v", err)
	}
}

// TestSessionsLeaveNothing: a plugin that the runtime drops again and again
// holds no goroutine and no connection of the ones before.
func TestSessionsLeaveNothing(t *testing.T) {
	const kicks = 20
	before := runtime.NumGoroutine()
	t.Run("kicked", func(t *testing.T) {
		dir, pods := t.TempDir(), plugintest.NewFakePods()
		tries := 0
		pods.AnswerSync = func() error {
			if tries++; tries <= kicks {
				return errors.New("not yet")
			}
			return nil
		}
		r := plugintest.StartRuntime(t, dir)
		startPlugin(t, dir, pods)
		for range kicks {
			if err := plugintest.Receive(t, r.Synced, "Synchronize"); err == nil {
				t.Error("synchronized too early")
			}
		}
		r.WaitSynced(t)
	})
	for deadline := time.Now().Add(plugintest.Patience); runtime.NumGoroutine() > before; {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		runtime.Gosched()
	}
}
