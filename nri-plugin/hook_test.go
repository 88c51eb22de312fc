// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/podspec"
)

// inDir keeps the working directory of the test, which hooks change.
func inDir(t *testing.T) {
	t.Helper()
	t.Chdir(".")
}

// TestHookWaits until the node is up, and says why it is not.
func TestHookWaits(t *testing.T) {
	inDir(t)
	r, pods, _ := startAdjusting(t, nil)
	hook := hookOf(t, r, plugintest.Sandbox("a", podspec.AnnotationEnabled, "true", podspec.AnnotationWait, "20s"))
	if err := call(hook); err != nil {
		t.Errorf("of a node that is up: %v", err)
	}
	pods.serves.Clear()
	done := make(chan error, 1)
	go func() { done <- call(hook) }()
	select {
	case err := <-done:
		t.Errorf("it did not wait: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	pods.serves.Store("uid-a id-a", true)
	if err := plugintest.Receive(t, done, "the hook"); err != nil {
		t.Error(err)
	}

	fails := hookOf(t, r, plugintest.Sandbox("b", podspec.AnnotationEnabled, "true", podspec.AnnotationWait, "1s"))
	starts := hookOf(t, r, plugintest.Sandbox("b", podspec.AnnotationEnabled, "true", podspec.AnnotationWait, "1s", podspec.AnnotationWaitPolicy, "start"))
	pods.serves.Clear()
	err := call(fails)
	for _, text := range []string{"pod default/b", podspec.AnnotationWait, `"1s"`, "waits for approval in the admin console", podspec.AnnotationWaitPolicy + `: "start"`} {
		if !plugintest.ErrContains(err, text) {
			t.Errorf("want %q in the error, got %v", text, err)
		}
	}
	if err := call(starts); err != nil {
		t.Errorf("wait-policy start: %v", err)
	}
}

// TestHookOutlivesPlugin: a hook goes on waiting while the plugin is restarted, and
// says so if it does not come back.
func TestHookOutlivesPlugin(t *testing.T) {
	inDir(t)
	dir, pods, log := t.TempDir(), newFakePods(), slog.New(slog.DiscardHandler)
	first := newHookServer(dir, pods, nil, log)
	program, err := first.prepare()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	args := func(wait time.Duration) []string {
		return []string{program, hookCommand, hookCall{PodUID: "uid-a", Pod: "default/a", Wait: wait, Value: wait.String(), Fails: true}.encode()}
	}
	go func() { done <- runHook(args(20*time.Second), strings.NewReader("{}")) }()
	time.Sleep(100 * time.Millisecond)
	first.close()
	if err := runHook(args(time.Second), strings.NewReader("{}")); !plugintest.ErrContains(err, "does not answer on this host") {
		t.Errorf("without a plugin: %v", err)
	}
	second := newHookServer(dir, pods, nil, log)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- second.Run(ctx) }()
	pods.serves.Store("uid-a id-a", true)
	if err := plugintest.Receive(t, done, "the hook"); err != nil {
		t.Error(err)
	}
	stop()
	if err := plugintest.Receive(t, ended, "the end of Run"); err != nil {
		t.Error(err)
	}
	if _, err := second.prepare(); err == nil {
		t.Error("a server that has ended hands out hooks")
	}
}

// TestHookEndsWithContainer: nobody waits for a container that is gone.
func TestHookEndsWithContainer(t *testing.T) {
	inDir(t)
	pods := newFakePods()
	h := newHookServer(t.TempDir(), pods, nil, slog.New(slog.DiscardHandler))
	defer h.close()
	program, err := h.prepare()
	if err != nil {
		t.Fatal(err)
	}
	container := exec.Command("sleep", "1000")
	if err := container.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	arg := hookCall{PodUID: "uid-a", Wait: time.Hour, Fails: true}.encode()
	go func() {
		done <- runHook([]string{program, hookCommand, arg}, strings.NewReader(fmt.Sprintf(`{"pid":%d}`, container.Process.Pid)))
	}()
	container.Process.Kill()
	container.Wait()
	if err := plugintest.Receive(t, done, "the hook"); err == nil {
		t.Error("the container may start")
	}
}

// TestHookResolvConf: the engine has the pod's own resolv.conf before the container
// starts; where nobody is there to take it, it is what the container has.
func TestHookResolvConf(t *testing.T) {
	inDir(t)
	made := filepath.Join(t.TempDir(), "made")
	names := fakeResolver{"uid-a": made}
	r, _, _ := startAdjusting(t, names)
	sb := plugintest.Sandbox("a", podspec.AnnotationEnabled, "true", podspec.AnnotationDNS, "true")
	hook := hookOf(t, r, sb, resolvMount(sb))
	var arg hookCall
	if err := json.Unmarshal([]byte(hook.Args[2]), &arg); err != nil {
		t.Fatal(err)
	}
	original := filepath.Join(t.TempDir(), "resolv.conf")
	const own = "nameserver 10.96.0.10\n"
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(original, own)
	arg.ResolvFrom = original
	hook.Args[2] = arg.encode()
	has := func(want string) {
		t.Helper()
		if got, err := os.ReadFile(made); err != nil || string(got) != want {
			t.Errorf("the pod's resolv.conf is %q, %v; want %q", got, err, want)
		}
	}
	if err := call(hook); err != nil {
		t.Error(err)
	}
	has("search ts.net\n" + own)

	delete(names, "uid-a") // the engine refuses
	write(made, "")
	if err := call(hook); err != nil {
		t.Error(err)
	}
	has(own)
	write(made, "kept\n")
	if err := call(hook); err != nil {
		t.Error(err)
	}
	has("kept\n")

	write(original, strings.Repeat("#", maxResolvConf+1))
	if err := call(hook); !plugintest.ErrContains(err, "is larger than") {
		t.Errorf("a large file: %v", err)
	}
}
