// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/sys/unix"

	"tailscale-nri/engine"
	"tailscale-nri/k3d/lab/control"
	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/privileges"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

// testMachine is this one, with a configuration of its own, a root without files, and
// no plugin.
func testMachine(t *testing.T, vars ...string) *machine {
	t.Helper()
	dir := t.TempDir()
	m := newMachine(plugintest.Environment(assigned(append([]string{
		settings.StateDir + "=" + filepath.Join(dir, "state"), settings.StatusSocket + "=" + filepath.Join(dir, "status.sock"),
		settings.NRISocket + "=" + filepath.Join(dir, "nri.sock"), settings.AuthKey + "=tskey-auth-" + plugintest.Secret,
	}, vars...))), 0)
	if m.cfgErr != nil {
		t.Fatal(m.cfgErr)
	}
	t.Cleanup(func() { config.UseProxy(httpproxy.Config{}) }) // which is the process's
	m.root, m.patience, m.secondLook = t.TempDir(), plugintest.Patience, 0
	return m
}

// assigned are "KEY=VALUE"s, of which the last of a key counts.
func assigned(list []string) map[string]string {
	vars := make(map[string]string)
	for _, v := range list {
		key, value, _ := strings.Cut(v, "=")
		vars[key] = value
	}
	return vars
}

// put writes a file below the machine's root.
func (m *machine) put(t *testing.T, path, text string) {
	t.Helper()
	file := m.path(path)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// expect wants a finding with that result and remedy, whose text holds seen. No
// finding shows a secret.
func expect(t *testing.T, findings []finding, result, seen, remedy string) {
	t.Helper()
	for _, f := range findings {
		if strings.Contains(f.Seen+f.Remedy, plugintest.Secret) {
			t.Errorf("a secret is shown: %+v", f)
		}
	}
	if !slices.ContainsFunc(findings, func(f finding) bool {
		return f.Result == result && strings.Contains(f.Seen, seen) && f.Remedy == remedy
	}) {
		t.Errorf("want %s, %q, remedy %q; got %+v", result, seen, remedy, findings)
	}
}

// look runs one check.
func look(t *testing.T, m *machine, c func(context.Context, *machine) []finding) []finding {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), plugintest.Patience)
	defer cancel()
	return c(ctx, m)
}

// TestExamine: the order is the list's whatever the checks take, and one that hangs
// holds up nobody.
func TestExamine(t *testing.T) {
	m := &machine{patience: 50 * time.Millisecond}
	release := make(chan struct{})
	defer close(release)
	first := make(chan struct{})
	got := examine(t.Context(), m, []check{
		{"hangs", func(context.Context, *machine) []finding { <-release; return nil }},
		{"late", func(ctx context.Context, _ *machine) []finding {
			<-first
			<-ctx.Done()
			return []finding{fail("too late", remedyDERP)}
		}},
		{"early", func(context.Context, *machine) []finding {
			close(first)
			return []finding{fine("two\n lines"), {Check: "other", Result: resultWarn}}
		}},
	})
	want := []finding{
		{"hangs", resultUnknown, "no answer within 50ms", ""}, {"late", resultFail, "too late", remedyDERP},
		{"early", resultOK, "two lines", ""}, {"other", resultWarn, "", ""},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
}

// examined is what the program says, by a process of its own, and its exit code.
func examined(t *testing.T, cmd *exec.Cmd) (findings []finding, code int) {
	t.Helper()
	cmd.Args = append(cmd.Args, "doctor", "-json")
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &findings); err != nil {
		t.Fatalf("%v\n%s%s", err, out, &errs)
	}
	if strings.Contains(string(out)+errs.String(), plugintest.Secret) || errs.Len() > 0 {
		t.Errorf("it says %q, and shows %s", &errs, out)
	}
	return findings, cmd.ProcessState.ExitCode()
}

// of are the findings of one check.
func of(findings []finding, name string) []finding {
	return slices.DeleteFunc(slices.Clone(findings), func(f finding) bool { return f.Check != name })
}

// TestDoctorBesideThePlugin runs the whole program next to another one of it that
// serves, with a runtime, a control plane and an API.
func TestDoctorBesideThePlugin(t *testing.T) {
	dir := t.TempDir()
	plane := startControl(t)
	vars := append(planeVars(plane), settings.AuthKey+"=", settings.PodUID+"=uid-own",
		settings.StateDir+"="+filepath.Join(dir, "state"), settings.StatusSocket+"="+filepath.Join(dir, "status.sock"), settings.NRISocket+"="+filepath.Join(dir, "nri.sock"))
	own := plugintest.Sandbox("own")
	own.Uid = "uid-own"
	r := plugintest.StartRuntime(t, dir, own)
	begin(t, dir, func(c *exec.Cmd) { c.Env = append(c.Env, vars...) })
	r.WaitSynced(t)

	minted := plane.Counters().KeysMinted
	var findings []finding
	var code int
	withManifestsCaps(t, func() { findings, code = examined(t, process(t, vars...)) })
	expect(t, of(findings, "configuration"), resultOK, "an OAuth client", "")
	expect(t, of(findings, "plugin"), resultOK, statussocket.ReadyText, "")
	expect(t, of(findings, "NRI"), resultOK, "registered with containerd v2.4.2, timeouts 5s for the registration and 2s for a request; it runs the plugin's pod", "")
	expect(t, of(findings, "kernel features"), resultOK, engine.TrialLink, "")
	expect(t, of(findings, "capabilities"), resultOK, "NET_BROADCAST", "")
	expect(t, of(findings, "credentials"), resultOK, "a key for tag:k8s-pod was minted, and deleted unused", "")
	expect(t, of(findings, "control plane"), resultOK, plane.ControlURL(), "")
	expect(t, of(findings, "clock"), resultOK, "as that of "+plane.APIURL(), "")
	expect(t, of(findings, "DERP"), resultUnknown, "before the first pod", "")
	expect(t, of(findings, "state directory"), resultOK, "free", "")
	expect(t, of(findings, "leftovers"), resultOK, "0 links, 0 records", "")
	expect(t, of(findings, "open files"), resultOK, "the plugin ", "")
	if now := plane.Counters().KeysMinted; now != minted+1 {
		t.Errorf("%d keys were minted for the look", now-minted)
	}
	if slices.ContainsFunc(findings, func(f finding) bool { return f.Result == resultFail }) || code != 0 {
		t.Errorf("exit code %d with %+v", code, findings)
	}
	var names []string
	for _, f := range findings {
		if !slices.Contains(names, f.Check) {
			names = append(names, f.Check)
		}
	}
	var want []string
	for _, c := range checks() {
		if want = append(want, c.name); c.name == "DERP" {
			want = append(want, aboutUDP)
		}
	}
	if !slices.Equal(names, want) {
		t.Errorf("the order is %q", names)
	}
}

// withManifestsCaps has the processes that f starts hold the capabilities that the
// manifests give, and no others.
func withManifestsCaps(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread has lost capabilities, and ends here
		var err error
		for c := range uint(unix.CAP_LAST_CAP + 1) {
			if !slices.ContainsFunc(privileges.Needed, func(n privileges.Capability) bool { return n.Bit == c }) {
				err = errors.Join(err, unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0))
			}
		}
		if err == nil {
			defer func() { done <- nil }()
			f()
			return
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestDoctorWithoutPrivileges: a process that may do nothing can say so.
func TestDoctorWithoutPrivileges(t *testing.T) {
	cmd := process(t, settings.ConfigDir+"=/nowhere")
	cmd.Path = "/proc/self/exe" // its directory is root's
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	findings, code := examined(t, cmd)
	expect(t, of(findings, "capabilities"), resultFail, "NET_ADMIN, NET_BROADCAST, NET_RAW, SYS_ADMIN", remedyCapabilities)
	expect(t, of(findings, "kernel features"), resultFail, engine.TrialNamespace+": operation not permitted", remedyNamespaces)
	expect(t, of(findings, "configuration"), resultFail, "/nowhere", remedyConfiguration)
	expect(t, of(findings, "credentials"), resultUnknown, "the configuration cannot be used", "")
	expect(t, of(findings, "devices"), resultUnknown, "the configuration cannot be used", "")
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
}

// TestDoctorThatCannotLook ends with 2.
func TestDoctorThatCannotLook(t *testing.T) {
	for _, args := range [][]string{{"doctor", "-yaml"}, {"doctor", "now"}, {"-bogus", "doctor"}, {"doctor", "-device-limit", "-1"}} {
		cmd := process(t)
		cmd.Args = append(cmd.Args, args...)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != 2 || !strings.HasPrefix(string(out), "tailscale-nri: ") {
			t.Errorf("%q ends with %d: %s", args, code, out)
		}
	}
	var broken brokenWriter
	if err := doctor(t.Context(), testMachine(t, settings.LoginServer+"=http://127.0.0.1:1"), false, broken); err == nil || !errors.As(err, new(statussocket.CannotAsk)) {
		t.Errorf("a table that nobody reads: %v", err)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("broken") }

func TestPrintFindings(t *testing.T) {
	var out strings.Builder
	err := printFindings(&out, []finding{{"MTU", resultOK, "1500", ""}, {"UDP", resultWarn, "none", "let it pass"}})
	want := "CHECK  RESULT  SEEN, AND REMEDY\nMTU    ok      1500\nUDP    warn    none\n               remedy: let it pass\n"
	if err != nil || out.String() != want {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// startControl is a tailnet whose API gives tag:k8s-pod and tag:web.
func startControl(t *testing.T) *control.Server {
	t.Helper()
	s, err := control.Start(control.Config{Tags: []string{"tag:k8s-pod", "tag:web"}, OAuthClientSecret: plugintest.Secret})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// planeVars are the settings for its OAuth client.
func planeVars(s *control.Server) []string {
	return []string{settings.LoginServer + "=" + s.ControlURL(), settings.APIURL + "=" + s.APIURL(), settings.OAuthID + "=lab-client", settings.OAuthSecret + "=" + plugintest.Secret}
}

// withPlane is a machine that comes in over OAuth.
func withPlane(t *testing.T, s *control.Server, more ...string) *machine {
	t.Helper()
	return testMachine(t, append(append(planeVars(s), settings.AuthKey+"="), more...)...)
}
