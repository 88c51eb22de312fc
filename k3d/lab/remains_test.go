// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"tailscale-nri/k3d/lab/internal/nsthread"

	"golang.org/x/sys/unix"
)

func itoa(n int) string { return strconv.Itoa(n) }

func atoi(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

// TestThreads asks often enough for the main thread to be offered, which must not be taken: it would stay in the
// namespace for as long as the program runs.
func TestThreads(t *testing.T) {
	main := namespaceLinks("self")
	for range 200 {
		err := nsthread.Run(func() error {
			if unix.Gettid() == unix.Getpid() {
				t.Error("fn runs on the main thread")
			}
			return unix.Unshare(unix.CLONE_NEWNET)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if now := namespaceLinks("self"); !slices.Equal(now, main) {
		t.Errorf("the program has moved from %v to %v", main, now)
	}
}

// TestUpAfterKill kills the program that builds a lab at several moments; what it leaves must not stand in the way of
// the next one, and must be gone after that one's Down.
func TestUpAfterKill(t *testing.T) {
	cfg, err := testConfig(t).withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	for _, moment := range []struct{ name, file string }{
		{"directory made", markFile},
		{"first namespace made", "ns/net"},
		{"node made", "node/run"},
		{"containerd starting", "log/containerd.log"},
		{"containerd listening", "node/run/containerd/containerd.sock"},
	} {
		t.Run(moment.name, func(t *testing.T) {
			killAt(t, cfg, moment.file)
			upLab(t)
		})
	}
}

// killAt starts a program that builds a lab and kills it when file appears.
func killAt(t *testing.T, cfg Config, file string) {
	t.Helper()
	cmd := exec.Command(cfg.bin("lab"), "up")
	cmd.Env = append(os.Environ(), "LAB_NAME="+cfg.Name, "LAB_DIR="+cfg.Dir, "LAB_BUILD="+cfg.Build)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the killed program makes "+file, func(context.Context) error {
		_, err := os.Lstat(cfg.path(file))
		return err
	})
	cmd.Process.Kill()
	cmd.Wait()
}

// TestUpAfterAbandonedPods leaves a whole lab with running pods, as a killed test or `kill -9` of a demo does.
func TestUpAfterAbandonedPods(t *testing.T) {
	lab, err := Up(t.Context(), testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	pod, _ := runTool(t, lab, PodSpec{Name: "left"})
	if err := lab.Close(); err != nil {
		t.Fatal(err)
	}
	left, err := Remains(lab.cfg)
	if err != nil || len(left) == 0 {
		t.Fatalf("Remains sees nothing of a running lab: %v", err)
	}
	next := upLab(t)
	if pods, err := next.CRI().ListPods(t.Context()); err != nil || len(pods) != 0 {
		t.Errorf("the new lab has pods %v: %v", pods, err)
	}
	// A process that has ended and waits for init to notice has no executable.
	if exe, err := os.Readlink("/proc/" + itoa(pod.PID) + "/exe"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pause process %d (%s) of the abandoned pod lives on", pod.PID, exe)
	}
}

func TestUpWhileInUse(t *testing.T) {
	lab := upLab(t)
	_, err := Up(t.Context(), lab.cfg)
	if err == nil || !strings.Contains(err.Error(), "in use by process "+itoa(os.Getpid())) {
		t.Errorf("second Up of the same name: %v", err)
	}
	if _, err := lab.CRI().ListPods(t.Context()); err != nil {
		t.Errorf("the first lab is no longer well: %v", err)
	}
}

func TestDownWithoutLab(t *testing.T) {
	cfg := testConfig(t)
	cfg.Name, cfg.Dir = "tsnri-none", filepath.Join(t.TempDir(), "none")
	if len(cfg.Dir) > maxDir {
		cfg.Dir = "/run/tsnri-none"
	}
	if err := Down(cfg); err != nil {
		t.Errorf("Down without a lab: %v", err)
	}
	assertNothingRemains(t, cfg)
}

// TestDownSparesOthers gives Down a directory that is not a lab's.
func TestDownSparesOthers(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "lt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	precious := filepath.Join(dir, "precious")
	if err := os.WriteFile(precious, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, mark := range []string{"", "another-lab\n"} {
		if mark != "" {
			if err := os.WriteFile(filepath.Join(dir, markFile), []byte(mark), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		cfg := testConfig(t)
		cfg.Dir = dir
		if err := Down(cfg); err == nil || !strings.Contains(err.Error(), "LAB_DIR") {
			t.Errorf("Down of a directory marked %q: %v", mark, err)
		}
		if _, err := os.Stat(precious); err != nil {
			t.Fatalf("Down of a directory marked %q: %v", mark, err)
		}
	}
}

func TestConfig(t *testing.T) {
	t.Setenv("LAB_DIR", "")
	for _, c := range []struct {
		cfg       Config
		env, want string // Dir, or a part of the error
	}{
		{Config{}, "", "/run/tsnri"},
		{Config{Name: "x"}, "", "/run/x"},
		{Config{}, "/tmp/lab", "/tmp/lab"},
		{Config{Dir: "/tmp/other"}, "/tmp/lab", "/tmp/other"},
		{Config{Dir: "relative"}, "", "absolute"},
		{Config{Dir: "/"}, "", "absolute"},
		{Config{Dir: "/run/../etc"}, "", "absolute"},
		{Config{Dir: "/" + strings.Repeat("x", maxDir)}, "", "bytes"},
		{Config{Name: "a/b"}, "", "name"},
	} {
		t.Setenv("LAB_DIR", c.env)
		got, err := c.cfg.withDefaults()
		if err != nil && !strings.Contains(err.Error(), c.want) || err == nil && got.Dir != c.want {
			t.Errorf("%+v with LAB_DIR=%q: %q, %v; want %q", c.cfg, c.env, got.Dir, err, c.want)
		}
	}
}
