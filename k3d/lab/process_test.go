// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// standInBuild is the build directory with labtool as the plugin.
func standInBuild(t *testing.T) string {
	t.Helper()
	cfg, err := testConfig(t).withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	build := t.TempDir()
	for _, dir := range []string{"cni", "image"} {
		if err := os.Symlink(filepath.Join(cfg.Build, dir), filepath.Join(build, dir)); err != nil {
			t.Fatal(err)
		}
	}
	binaries, err := filepath.Glob(cfg.bin("*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, binary := range append(binaries, cfg.bin("tailscale-nri")) {
		name := filepath.Base(binary)
		if name == "tailscale-nri" {
			binary = cfg.image("labtool")
		}
		link := filepath.Join(build, "bin", name)
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(binary, link); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
	return build
}

// TestPlugin starts a stand-in twice: it runs in the node, and its log goes on.
func TestPlugin(t *testing.T) {
	cfg := testConfig(t)
	cfg.Build = standInBuild(t)
	lab, err := Up(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { downLab(t, lab) })
	for range 2 {
		plugin, err := lab.StartPlugin([]string{"KEY=value"}, "serve", ":9999")
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the plugin serves in the node", func(ctx context.Context) error {
			_, err := lab.InNode(ctx, lab.ToolPath(), "get", "http://127.0.0.1:9999/")
			return err
		})
		env, err := os.ReadFile("/proc/" + itoa(plugin.PID()) + "/environ")
		if err != nil || !strings.Contains(string(env), "KEY=value") {
			t.Errorf("the plugin's environment: %v: %q", err, env)
		}
		if err := plugin.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := plugin.Wait(t.Context()); err == nil {
			t.Error("a killed plugin has ended well")
		}
	}
	log, err := os.ReadFile(lab.cfg.path("log", "plugin.log"))
	if starts := strings.Count(string(log), "serving HTTP"); err != nil || starts != 2 {
		t.Errorf("the log holds %d starts: %v", starts, err)
	}
}

// TestNRISocket dials from outside of the node, as a test's own plugin does.
func TestNRISocket(t *testing.T) {
	lab := upLab(t)
	conn, err := net.Dial("unix", lab.NRISocket())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if _, err := lab.InNode(t.Context(), "test", "-S", "/var/run/nri/nri.sock"); err != nil {
		t.Errorf("the node has no NRI socket at its usual path: %v", err)
	}
}

// TestAwait has a process that ends, and one that never gets ready.
func TestAwait(t *testing.T) {
	lab := upLab(t)
	never := func(context.Context) error { return errors.New("not yet") }
	ends, err := lab.cfg.start("ends", lab.NodeCommand(t.Context(), "sh", "-c", "echo broken >&2; exit 3"))
	if err != nil {
		t.Fatal(err)
	}
	if err := ends.Await(t.Context(), never); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("waiting for a process that ends: %v", err)
	}
	stays, err := lab.cfg.start("stays", lab.NodeCommand(context.Background(), lab.ToolPath(), "sleep"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*pollInterval)
	defer cancel()
	if err := stays.Await(ctx, never); err == nil || !strings.Contains(err.Error(), "not yet") {
		t.Errorf("waiting for a process that is never ready: %v", err)
	}
	for range 2 { // the second time it has ended before
		if err := stays.End(t.Context(), unix.SIGTERM); err != nil {
			t.Error(err)
		}
	}
}
