// SPDX-License-Identifier: BSD-3-Clause

package nri

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tailscale-nri/nri-plugin/internal/ocihook"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/podspec"
)

// TestHookWaits until the node is up, and says why it is not.
func TestHookWaits(t *testing.T) {
	t.Chdir(".") // which is put back: hooks change it
	r, pods, _ := startAdjusting(t, nil)
	hook := hookOf(t, r, plugintest.Sandbox("a", podspec.AnnotationEnabled, "true", podspec.AnnotationWait, "20s"))
	if err := call(hook); err != nil {
		t.Errorf("of a node that is up: %v", err)
	}
	pods.Serving.Clear()
	done := make(chan error, 1)
	go func() { done <- call(hook) }()
	select {
	case err := <-done:
		t.Errorf("it did not wait: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	pods.Serving.Store("uid-a id-a", true)
	if err := plugintest.Receive(t, done, "the hook"); err != nil {
		t.Error(err)
	}

	fails := hookOf(t, r, plugintest.Sandbox("b", podspec.AnnotationEnabled, "true", podspec.AnnotationWait, "1s"))
	starts := hookOf(t, r, plugintest.Sandbox("b", podspec.AnnotationEnabled, "true", podspec.AnnotationWait, "1s", podspec.AnnotationWaitPolicy, "start"))
	pods.Serving.Clear()
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

// TestHookResolvConf: the engine has the pod's own resolv.conf before the container
// starts; where nobody is there to take it, it is what the container has.
func TestHookResolvConf(t *testing.T) {
	t.Chdir(".") // which is put back: hooks change it
	made := filepath.Join(t.TempDir(), "made")
	names := plugintest.FakeResolver{"uid-a": made}
	r, _, _ := startAdjusting(t, names)
	sb := plugintest.Sandbox("a", podspec.AnnotationEnabled, "true", podspec.AnnotationDNS, "true")
	hook := hookOf(t, r, sb, resolvMount(sb))
	var arg ocihook.Call
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
	hook.Args[2] = arg.Encode()
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

	write(original, strings.Repeat("#", ocihook.MaxResolvConf+1))
	if err := call(hook); !plugintest.ErrContains(err, "shorten the pod's dnsConfig") {
		t.Errorf("a large file: %v", err)
	}
}
