// SPDX-License-Identifier: BSD-3-Clause

// Package plugintest has what tests of several of the plugin's packages share: a
// container runtime that speaks real NRI, sandboxes, a log that can be waited for.
//
// It is linked into tests alone, and stands in for no part of the plugin.
package plugintest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tailscale-nri/nri-plugin/internal/settings"
)

// Secret stands wherever one may be given; no error may repeat it.
const Secret = "kQx7secretZ"

// Environment is one of these variables alone, in the shape of os.Getenv.
func Environment(vars map[string]string) func(string) string {
	return func(key string) string { return vars[key] }
}

// Pairs makes a map of alternating keys and values.
func Pairs(list []string) map[string]string {
	m := make(map[string]string)
	for i := 0; i+1 < len(list); i += 2 {
		m[list[i]] = list[i+1]
	}
	return m
}

// MountConfig writes the files as the kubelet does: into a directory of their own, to
// which a link leads that is replaced at once.
func MountConfig(t *testing.T, dir string, files ...string) {
	t.Helper()
	home, err := os.MkdirTemp(dir, "..2026_")
	if err != nil {
		t.Fatal(err)
	}
	for key, text := range Pairs(files) {
		if err := os.WriteFile(filepath.Join(home, key), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		// The links of earlier files stay, as the kubelet's do for a while.
		if err := os.Symlink(filepath.Join("..data", key), filepath.Join(dir, key)); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	next := filepath.Join(dir, "..data_tmp")
	if err := os.Symlink(filepath.Base(home), next); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
}

// WithDir is an environment with a directory of variables.
func WithDir(dir string, more ...string) func(string) string {
	return Environment(Pairs(append(more, settings.ConfigDir, dir)))
}

// ErrContains reports whether err's text holds want; "" wants no error.
func ErrContains(err error, want string) bool {
	if want == "" || err == nil {
		return want == "" && err == nil
	}
	return strings.Contains(err.Error(), want)
}

// WriteFile writes a file of this name in dir and returns its path.
func WriteFile(t *testing.T, dir, name string, data []byte) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Patience is how long a test waits for what must happen. It bounds a hang and
// is not an expectation.
const Patience = 30 * time.Second

// Receive waits for a value.
func Receive[T any](t *testing.T, c <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(Patience):
		t.Fatalf("waiting for %s: nothing after %v", what, Patience)
	}
	return v
}
