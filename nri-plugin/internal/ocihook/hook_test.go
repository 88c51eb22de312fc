// SPDX-License-Identifier: BSD-3-Clause

package ocihook

import (
	"context"
	"fmt"
	"log/slog"
	"os/exec"
	"strings"
	"testing"
	"time"

	"tailscale-nri/nri-plugin/internal/plugintest"
)

// TestHookOutlivesPlugin: a hook goes on waiting while the plugin is restarted, and
// says so if it does not come back.
func TestHookOutlivesPlugin(t *testing.T) {
	t.Chdir(".") // which is put back: hooks change it
	dir, pods, log := t.TempDir(), plugintest.NewFakePods(), slog.New(slog.DiscardHandler)
	first := NewServer(dir, pods, nil, log)
	program, err := first.Prepare()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	args := func(wait time.Duration) []string {
		return []string{program, Command, Call{PodUID: "uid-a", Pod: "default/a", Wait: wait, Value: wait.String(), Fails: true}.Encode()}
	}
	go func() { done <- Run(args(20*time.Second), strings.NewReader("{}")) }()
	time.Sleep(100 * time.Millisecond)
	first.Close()
	if err := Run(args(time.Second), strings.NewReader("{}")); !plugintest.ErrContains(err, "does not answer on this host") {
		t.Errorf("without a plugin: %v", err)
	}
	second := NewServer(dir, pods, nil, log)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- second.Run(ctx) }()
	pods.Serving.Store("uid-a id-a", true)
	if err := plugintest.Receive(t, done, "the hook"); err != nil {
		t.Error(err)
	}
	stop()
	if err := plugintest.Receive(t, ended, "the end of Run"); err != nil {
		t.Error(err)
	}
	if _, err := second.Prepare(); err == nil {
		t.Error("a server that has ended hands out hooks")
	}
}

// TestHookEndsWithContainer: nobody waits for a container that is gone.
func TestHookEndsWithContainer(t *testing.T) {
	t.Chdir(".") // which is put back: hooks change it
	pods := plugintest.NewFakePods()
	h := NewServer(t.TempDir(), pods, nil, slog.New(slog.DiscardHandler))
	defer h.Close()
	program, err := h.Prepare()
	if err != nil {
		t.Fatal(err)
	}
	container := exec.Command("sleep", "1000")
	if err := container.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	arg := Call{PodUID: "uid-a", Wait: time.Hour, Fails: true}.Encode()
	go func() {
		done <- Run([]string{program, Command, arg}, strings.NewReader(fmt.Sprintf(`{"pid":%d}`, container.Process.Pid)))
	}()
	container.Process.Kill()
	container.Wait()
	if err := plugintest.Receive(t, done, "the hook"); err == nil {
		t.Error("the container may start")
	}
}
