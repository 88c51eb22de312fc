// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/podspec"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

func TestRunAll(t *testing.T) {
	bad := errors.New("bad")
	until := func(ctx context.Context) error { <-ctx.Done(); return nil }
	if err := runAll(context.Background(), until, func(context.Context) error { return bad }, until); !errors.Is(err, bad) {
		t.Errorf("got %v, want %v", err, bad)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := runAll(ctx, until, until); err != nil {
		t.Errorf("got %v at the end of the context", err)
	}
}

// TestEngineEndsLast: not before what calls it has ended, and then at once.
func TestEngineEndsLast(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var order []string
	release := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- runEngine(ctx, func(ctx context.Context) error {
			<-ctx.Done()
			order = append(order, "engine")
			return nil
		}, func(ctx context.Context) error {
			<-ctx.Done()
			<-release
			order = append(order, "registration")
			return nil
		})
	}()
	cancel()
	close(release)
	if err := plugintest.Receive(t, ended, "the end"); err != nil || strings.Join(order, " ") != "registration engine" {
		t.Errorf("ended with %v, first to last %q", err, order)
	}
}

// TestHangingEngine: one that does not end keeps nobody waiting for good.
func TestHangingEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		start, release := time.Now(), make(chan struct{})
		defer close(release)
		err := runEngine(ctx,
			func(context.Context) error { <-release; return nil },
			func(ctx context.Context) error { <-ctx.Done(); return nil })
		if took := time.Since(start); !plugintest.ErrContains(err, "have not ended") || took != endPatience {
			t.Errorf("ended after %v with %v", took, err)
		}
	})
}

func TestHelpFitsAScreen(t *testing.T) {
	var out strings.Builder
	if err := run(context.Background(), plugintest.Environment(nil), []string{"-h"}, &out, nil); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	for _, line := range lines {
		if len(line) > 100 {
			t.Errorf("%d characters: %s", len(line), line)
		}
	}
	if len(lines) > 40 {
		t.Errorf("%d lines", len(lines))
	}
	for _, s := range settings.All() {
		if !strings.Contains(out.String(), s.Key) {
			t.Errorf("%s is not explained", s.Key)
		}
	}
}

func TestVersion(t *testing.T) {
	var out strings.Builder
	if err := run(context.Background(), plugintest.Environment(nil), []string{"-version"}, &out, nil); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"tailscale-nri ", "tailscale.com v1.", "NRI v0.", "go1."} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q does not say %q", out.String(), want)
		}
	}
}

func TestBadArguments(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-bogus"}, "-bogus"},
		{[]string{"statsu"}, `unknown argument "statsu"`},
		{[]string{"status", "a/b/c"}, `"a/b/c" is not a pod: write NAMESPACE/POD`},
		{[]string{"status", "-o", "xml"}, "-o is \"xml\": write one of table, wide, json, yaml"},
		{[]string{"status", "-o", "wide", "-json"}, "ask for one"},
		{[]string{"-watch"}, "belong to the command status"},
		{[]string{"ready", "now"}, `unknown argument "now"`},
		{[]string{"-json"}, "status"},
		{[]string{"status", "-json", "-yaml"}, "one"},
		{[]string{"status", "-device-limit", "5"}, "belongs to the command doctor"},
		{[]string{"status", "-status-socket", "rel"}, `TS_STATUS_SOCKET is "rel"`},
	} {
		if err := run(context.Background(), plugintest.Environment(nil), tt.args, nil, nil); !plugintest.ErrContains(err, tt.want) {
			t.Errorf("%q: got %v, want %q", tt.args, err, tt.want)
		}
	}
}

func TestFlagsOverrideTheEnvironment(t *testing.T) {
	env := plugintest.Environment(map[string]string{settings.StateDir: "/env", settings.NRISocket: "/env", settings.AuthKey: plugintest.Secret})
	c, err := parseArgs([]string{"-state-dir", "/flag"}, env, nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Read(c.getenv)
	if err != nil || cfg.StateDir != "/flag" || cfg.NRISocket != "/env" {
		t.Errorf("got %+v, %v", cfg, err)
	}
}

// process is this program, as main runs it.
func process(t *testing.T, vars ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append([]string{plugintest.RoleVar + "=main", "GOCOVERDIR=" + t.TempDir()}, vars...)
	return cmd
}

func TestNoCredentials(t *testing.T) {
	out, err := process(t).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("ended with %v, want exit status 1", err)
	}
	if text := string(out); strings.Count(text, "\n") != 1 || !strings.Contains(text, settings.OAuthID) || !strings.Contains(text, settings.AuthKey) {
		t.Errorf("it said %q", text)
	}
}

// startProcess starts the program with all its files in dir. The channel has
// how it ended.
func startProcess(t *testing.T, dir string, set ...func(*exec.Cmd)) (cmd *exec.Cmd, book *plugintest.LogBook, ended chan error) {
	t.Helper()
	cmd = process(t, settings.AuthKey+"=tskey-auth-"+plugintest.Secret, settings.LoginServer+"=http://127.0.0.1:1",
		settings.StateDir+"="+filepath.Join(dir, "state"), settings.StatusSocket+"="+filepath.Join(dir, "status.sock"),
		settings.NRISocket+"="+filepath.Join(dir, "nri.sock"))
	book, ended = plugintest.NewLogBook(), make(chan error, 1)
	cmd.Stderr = book
	for _, f := range set {
		f(cmd)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill() })
	return cmd, book, ended
}

// TestProcess: the whole program comes up without a runtime or a tailnet,
// serves its status, takes a runtime that comes later, and ends on SIGTERM. It
// needs the Makefile's build tags, without which the engine refuses to run.
func TestProcess(t *testing.T) {
	dir := t.TempDir()
	p := serving(t, dir)
	var out strings.Builder
	if err := statussocket.Show(context.Background(), filepath.Join(dir, "status.sock"), statussocket.View{}, &out); !errors.Is(err, statussocket.ErrNotRunning) || !strings.HasPrefix(out.String(), "POD") {
		t.Errorf("status %q, %v", out.String(), err)
	}
	r := plugintest.StartRuntime(t, dir, plugintest.Sandbox("plain"))
	r.WaitSynced(t)
	if err := r.RunPod(plugintest.Sandbox("typo", podspec.AnnotationPrefix+"enable", "true")); !plugintest.ErrContains(err, "write "+podspec.AnnotationEnabled) {
		t.Errorf("the runtime got %v", err)
	}
	if code := p.end(t, syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d\n%s", code, p.book)
	}
	if p.book.Count(plugintest.Secret) != 0 {
		t.Error("the log shows the secret")
	}
}

// TestFlagsBeforeATool: they count for it, and what is wrong with them ends with 2.
func TestFlagsBeforeATool(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-status-socket", none, "whois", "a", "x"}, "no process answers on " + none},
		{[]string{"-bogus", "whois", "a", "x"}, "-bogus"},
	} {
		var out strings.Builder
		err := run(t.Context(), plugintest.Environment(nil), tt.args, &out, &out)
		if !errors.As(err, new(statussocket.CannotAsk)) || !plugintest.ErrContains(err, tt.want) || out.Len() > 0 {
			t.Errorf("%q: %v, and it printed %q", tt.args, err, out.String())
		}
	}
}
