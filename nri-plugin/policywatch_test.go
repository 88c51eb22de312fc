// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/podspec"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

// watchedPolicy is a watch of a directory that holds a policy.
func watchedPolicy(t *testing.T, text string) (dir string, change func(string, ...string), w *configWatch, book *plugintest.LogBook) {
	t.Helper()
	dir = t.TempDir()
	change = func(text string, more ...string) {
		t.Helper()
		plugintest.MountConfig(t, dir, append(more, settings.AuthKey, plugintest.Secret, settings.PolicyFile, filepath.Join(dir, config.PolicyKey), config.PolicyKey, text)...)
	}
	change(text)
	w, book = watched(t, dir)
	cfg, err := config.Read(w.getenv)
	if err == nil {
		w.policies, w.ranges = &podspec.Policies{}, cfg.Policy.Ranges
		w.policies.Set(cfg.Policy)
	}
	return dir, change, w, book
}

// TestPolicyChanges: a changed policy counts without another start; one that cannot
// be used leaves the last good one, and everybody is told; nothing makes it wider.
func TestPolicyChanges(t *testing.T) {
	dir, change, w, book := watchedPolicy(t, "rules: [{name: first}]")
	names := func() []string { return w.policies.Load().RuleNames() }
	expect := func(want ...string) {
		t.Helper()
		if got := names(); w.look() || !slices.Equal(names(), want) {
			t.Errorf("it restarts, or the rules are %q after %q, want %q", names(), got, want)
		}
	}
	expect("first")
	change("rules: [{name: second}, {name: third}]")
	expect("second", "third")
	if book.Count("the policy has changed") != 1 || book.Count("rules=2") != 1 {
		t.Errorf("the log says\n%s", book)
	}
	for _, bad := range []string{"rules: [{name: A B}]", "rules:\n- nam: x", "\t"} {
		change(bad)
		expect("second", "third")
		expect("second", "third")
		if ok, text := w.health.Ready(); !ok || !strings.Contains(text, "a changed configuration is not used: "+filepath.Join(dir, config.PolicyKey)) {
			t.Errorf("ready %v, %q", ok, text)
		}
	}
	if n := book.Count("going on with the old one"); n != 3 {
		t.Errorf("the log says so %d times, want once for each:\n%s", n, book)
	}
	if err := os.Remove(filepath.Join(dir, "..data", config.PolicyKey)); err != nil { // it is gone altogether
		t.Fatal(err)
	}
	expect("second", "third")
	if ok, text := w.health.Ready(); !ok || !strings.Contains(text, "no such file") {
		t.Errorf("ready %v, %q", ok, text)
	}
	// Other variables that are bad do not keep a good policy from counting.
	change("rules: [{name: fourth}]", settings.LogLevel, "loud")
	expect("fourth")
	change("rules: [{name: fourth}]")
	expect("fourth")
	if ok, text := w.health.Ready(); !ok || text != statussocket.ReadyText {
		t.Errorf("ready %v, %q", ok, text)
	}
	// One that is written in place is empty before it is whole.
	change("")
	expect("fourth")
	change("rules: [{name: fourth}]")
	expect("fourth")
	change("")
	expect("fourth")
	expect() // it is meant so
	change("rules: [{name: fourth}]")
	expect("fourth")
	// The engine is told its ranges at its start.
	change("clusterRanges: [10.0.0.0/8]\nrules: [{name: fifth}]")
	if !w.look() || book.Count("clusterRanges have changed") != 1 {
		t.Errorf("it does not restart:\n%s", book)
	}
}

// TestBrokenPolicyAtStart: the process waits, and is not ready, until the policy is
// fixed.
func TestBrokenPolicyAtStart(t *testing.T) {
	_, change, w, book := watchedPolicy(t, "rules: [{nam: x}]")
	if w.look() || w.policies.Load() != nil {
		t.Error("it serves")
	}
	if ok, text := w.health.Ready(); ok || !strings.Contains(text, `line 1: unknown key "nam"`) {
		t.Errorf("ready %v, %q", ok, text)
	}
	change("rules: [{name: x}]")
	if !w.look() || book.Count("can be used now") != 1 && book.Count("has changed") != 1 {
		t.Errorf("it does not begin:\n%s", book)
	}
}

// TestPolicyWithoutDirectory: a bad policy is waited for also where the environment
// has all the variables; anything else that is bad there ends the process.
func TestPolicyWithoutDirectory(t *testing.T) {
	file := plugintest.WriteFile(t, t.TempDir(), "p.yaml", []byte("rulse: []"))
	_, _, err := config.Load(plugintest.Environment(map[string]string{settings.AuthKey: plugintest.Secret, settings.PolicyFile: file}))
	if err == nil || !podspec.IsPolicyAlone(err) {
		t.Errorf("it is not waited for: %v", err)
	}
	_, _, err = config.Load(plugintest.Environment(map[string]string{settings.AuthKey: plugintest.Secret, settings.PolicyFile: file, settings.LogLevel: "loud"}))
	if err == nil || podspec.IsPolicyAlone(err) {
		t.Errorf("it is waited for: %v", err)
	}
}

// TestStartNamesPolicy: the log says at the start which policy counts.
func TestStartNamesPolicy(t *testing.T) {
	book := plugintest.NewLogBook()
	policy, err := podspec.ParsePolicy("/p.yaml", []byte("rules: [{}, {}]"))
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{cfg: config.Config{PolicyFile: "/p.yaml", Policy: policy}, log: slog.New(slog.NewTextHandler(book, nil))}
	d.logStart()
	if book.Count("policy=/p.yaml rules=2") != 1 {
		t.Errorf("the log says\n%s", book)
	}
}
