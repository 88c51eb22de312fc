// SPDX-License-Identifier: BSD-3-Clause

// Package labtest gives the tests below deploy what make has built: its programs, and a lab that they run in.
//
// It builds nothing, and it never skips: a test without its programs fails, or nobody would see that nothing was tested.
package labtest

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"tailscale-nri/k3d/lab"
)

// Up brings up a lab that goes with the test. Two at a time need two names.
func Up(t *testing.T, name string) *lab.Lab {
	t.Helper()
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	l, err := lab.Up(t.Context(), lab.Config{Name: name, Dir: "/run/" + name, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// Built is the path of a program that the make target builds, where the lab has its own from.
func Built(t *testing.T, name, target string) string {
	t.Helper()
	dir, err := lab.Config{}.BuildDir()
	path := filepath.Join(dir, "bin", name)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("%v; build it with: make %s", err, target)
	}
	return path
}
