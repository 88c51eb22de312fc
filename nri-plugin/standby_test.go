// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/status"
	"tailscale-nri/nri-plugin/internal/supervisor"
)

// asked is what one of the commands ready, live and status says, run as a
// process of its own with the program's environment.
func (p *program) asked(t *testing.T, what ...string) (text string, code int) {
	t.Helper()
	cmd := exec.Command(p.Path, what...)
	cmd.Env = p.Env
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState.ExitCode() != 1 {
		t.Fatalf("%q: %v: %s", what, err, out)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// awaitReady waits until the program is ready, or is not, and says text.
func (p *program) awaitReady(t *testing.T, code int, text string) {
	t.Helper()
	var said string
	for deadline := time.Now().Add(plugintest.Patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		var got int
		said, got = p.asked(t, cmdReady)
		if got == code && strings.Contains(said, text) {
			if strings.Count(said, "\n") != 1 {
				t.Errorf("more than a line: %q", said)
			}
			return
		}
	}
	t.Fatalf("ready says %q, want %d, %q\n%s", said, code, text, p.book)
}

// twice makes a second program serve the first one's pods, in a pod of its own.
func twice(dir string) func(*exec.Cmd) {
	return func(cmd *exec.Cmd) {
		cmd.Env = append(cmd.Env, settings.StatusSocket+"="+filepath.Join(dir, "second.sock"))
	}
}

// leaveSocket leaves an NRI socket in dir that nobody listens on.
func leaveSocket(t *testing.T, dir string) {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "nri.sock")})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
}

// TestStandsBy: the second process on a state directory is ready at once, and
// serves as soon as the first has ended, be it killed.
func TestStandsBy(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		dir := t.TempDir()
		first := serving(t, dir)
		second := begin(t, dir, twice(dir))
		second.await(t, "standing by", 1)
		// A roll that went on would leave this host without a process that serves.
		second.awaitReady(t, 1, "not ready to take over: "+servesLine)
		second.await(t, servesLine, 1)
		leaveSocket(t, dir)
		second.awaitReady(t, 0, "standing by: another process serves")
		if text, code := second.asked(t, cmdLive); code != 0 {
			t.Errorf("live says %q", text)
		}
		if text, _ := second.asked(t, cmdStatus); !strings.Contains(text, "\nstanding by") {
			t.Errorf("status says %q", text)
		}
		for p, role := range map[*program]string{first: status.Serving, second: status.Standby} {
			if text, _ := p.asked(t, cmdStatus, "-o", "json"); !strings.Contains(text, `"role": "`+role+`"`) {
				t.Errorf("status says %q, want role %s", text, role)
			}
		}
		if second.book.Count(servesLine) != 1 {
			t.Error("it asked the runtime while the first one serves")
		}
		first.signal(t, first.Process.Pid, sig)
		second.await(t, servesLine, 2)
		second.awaitReady(t, 1, servesLine)
		if code := second.end(t, syscall.SIGTERM); code != 0 || second.book.Count("level=ERROR") != 0 {
			t.Errorf("exit code %d\n%s", code, second.book)
		}
	}
}

// TestStandByEnds at once when it is told to, and a supervisor does not give it
// up however often it dies.
func TestStandByEnds(t *testing.T) {
	dir := t.TempDir()
	serving(t, dir)
	second := begin(t, dir, twice(dir))
	for i := range supervisor.MaxUnserved + 1 {
		second.await(t, "standing by", i+1)
		second.signal(t, second.only(t), syscall.SIGKILL)
	}
	second.await(t, "standing by", supervisor.MaxUnserved+2)
	start := time.Now()
	if code := second.end(t, syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d\n%s", code, second.book)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("the end took %v", took)
	}
}

// configured makes dir/config the program's directory of variables, in place of
// the credentials in its environment.
func configured(config string) func(*exec.Cmd) {
	return func(cmd *exec.Cmd) {
		cmd.Env = append(cmd.Env, settings.AuthKey+"=", settings.ConfigDir+"="+config)
	}
}

// TestConfigurationIsFixed: a process that cannot use what it is given stays
// and says why, takes what comes, and takes a change of that too. No process but
// its child is started for it.
func TestConfigurationIsFixed(t *testing.T) {
	dir, config := t.TempDir(), t.TempDir()
	plugintest.MountConfig(t, config, "TS_AUTH_KEY", plugintest.Secret)
	p := begin(t, dir, configured(config))
	p.await(t, "waiting until it is fixed", 2)
	p.awaitReady(t, 1, `unknown key "TS_AUTH_KEY" in `+config+": did you mean TS_AUTHKEY?; no credentials: set ")
	if text, code := p.asked(t, cmdLive); code != 0 {
		t.Errorf("live says %q", text)
	}
	plugintest.MountConfig(t, config, settings.AuthKey, "tskey-auth-"+plugintest.Secret)
	p.await(t, servesLine, 1)
	p.awaitReady(t, 1, servesLine)

	plugintest.MountConfig(t, config, settings.AuthKey, "tskey-auth-"+plugintest.Secret, settings.LogFormat, "xml")
	p.await(t, "going on with the old one", 1)
	p.awaitReady(t, 1, `a changed configuration is not used: LOG_FORMAT is "xml"`)
	plugintest.MountConfig(t, config, settings.AuthKey, "tskey-auth-"+plugintest.Secret, settings.ClusterName, "other")
	p.await(t, "starting again with it\" changed=CLUSTER_NAME", 1)
	p.await(t, servesLine, 2)
	if code := p.end(t, syscall.SIGTERM); code != 0 || p.book.Count(plugintest.Secret) != 0 {
		t.Errorf("exit code %d\n%s", code, p.book)
	}
	if n := p.book.Count("starting it again"); n != 0 {
		t.Errorf("the supervisor took a planned end for an accident, %d times\n%s", n, p.book)
	}
}

// TestChangeDuringARoll: both processes take the change, in whatever order, and
// when one has ended the other serves.
func TestChangeDuringARoll(t *testing.T) {
	dir, config := t.TempDir(), t.TempDir()
	leaveSocket(t, dir)
	plugintest.MountConfig(t, config, settings.AuthKey, "tskey-auth-"+plugintest.Secret)
	first := serving(t, dir, configured(config))
	second := begin(t, dir, configured(config), twice(dir))
	second.await(t, "standing by", 1)
	plugintest.MountConfig(t, config, settings.AuthKey, "tskey-auth-"+plugintest.Secret, settings.ClusterName, "other")
	for _, p := range []*program{first, second} {
		p.await(t, "starting again with it\" changed=CLUSTER_NAME", 1)
	}
	first.end(t, syscall.SIGTERM)
	second.awaitReady(t, 1, servesLine)
	second.end(t, syscall.SIGTERM)
	for _, p := range []*program{first, second} {
		if p.book.Count("level=ERROR") != 0 {
			t.Errorf("an error\n%s", p.book)
		}
	}
}

// TestReadyOnceRegistered, and no more when the runtime has gone, which is no
// reason to be started again.
func TestReadyOnceRegistered(t *testing.T) {
	dir := t.TempDir()
	p := serving(t, dir)
	kill := plugintest.StartRuntimeProcess(t, dir)
	p.awaitReady(t, 0, "ready")
	kill()
	p.awaitReady(t, 1, servesLine)
	if text, code := p.asked(t, cmdLive); code != 0 || text != "live\n" {
		t.Errorf("live says %q", text)
	}
}

// TestMountsAreNotOfTheDirectory: what a ConfigMap says of the paths that the
// probes and the mounts agree on is a slip like any other: it takes no process
// down.
func TestMountsAreNotOfTheDirectory(t *testing.T) {
	dir, config := t.TempDir(), t.TempDir()
	plugintest.MountConfig(t, config, settings.AuthKey, "tskey-auth-"+plugintest.Secret)
	p := serving(t, dir, configured(config))
	for i, bad := range []string{settings.StateDir, settings.StatusSocket, settings.NRISocket} {
		plugintest.MountConfig(t, config, settings.AuthKey, "tskey-auth-"+plugintest.Secret, bad, "/proc/nowhere/it")
		p.await(t, "going on with the old one", i+1)
		p.awaitReady(t, 1, bad)
		if text, code := p.asked(t, cmdLive); code != 0 {
			t.Errorf("%s: live says %q", bad, text)
		}
	}
	if p.book.Count(servesLine) != 1 {
		t.Errorf("it has restarted\n%s", p.book)
	}
}
