// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// buildSmall is a static program that does nothing.
func buildSmall(t *testing.T, arch string) string {
	t.Helper()
	return build(t, "package main\nfunc main() {}\n", "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0")
}

// dynamic is the test's own binary if it wants a dynamic linker, as with -race, and otherwise a program that does.
func dynamic(t *testing.T, self string) string {
	t.Helper()
	if _, err := readBinary(self); err != nil {
		return self
	}
	return build(t, "package main\nimport \"C\"\nfunc main() {}\n", "CGO_ENABLED=1")
}

func build(t *testing.T, source string, env ...string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module small\n", "main.go": source} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "build", "-trimpath", "-o", "small", ".")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return filepath.Join(dir, "small")
}

// project is the top directory.
const project = "../.."

// buildReal runs `make build` on the sources in dir, with what is the same wherever they lie.
func buildReal(t *testing.T, dir string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "tailscale-nri")
	cmd := exec.Command("make", "--no-print-directory", "build", "BIN="+binary, "VERSION="+realVersion)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return binary
}

const realVersion = "v0-test"

// testElsewhere: the same sources in another directory give the same program.
func (r real) testElsewhere(t *testing.T) {
	elsewhere := t.TempDir()
	list, err := exec.Command("git", "-C", project, "ls-files", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.Lines(string(list)) {
		name = strings.TrimSpace(name)
		data, err := os.ReadFile(filepath.Join(project, name))
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted and not yet committed
		}
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(elsewhere, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, data, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	if here, there := digest(t, r.binary), digest(t, buildReal(t, elsewhere)); here != there {
		t.Errorf("built here %s, in another directory %s", here, there)
	}
}

func digest(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

func untar(t *testing.T, file string) map[string][]byte {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return untarReader(t, f)
}

func untarReader(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	entries := map[string][]byte{}
	for archive := tar.NewReader(r); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return entries
		}
		if err != nil {
			t.Fatal(err)
		}
		if entries[header.Name], err = io.ReadAll(archive); err != nil {
			t.Fatal(err)
		}
	}
}
