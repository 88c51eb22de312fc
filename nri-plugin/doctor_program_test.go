// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/doctor"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/privileges"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

// TestDoctorNextToPlugin runs the whole program next to another one of it that
// serves, with a runtime, a control plane and an API.
func TestDoctorNextToPlugin(t *testing.T) {
	dir := t.TempDir()
	plane := plugintest.StartControl(t)
	vars := append(plugintest.PlaneVars(plane), settings.AuthKey+"=", settings.PodUID+"=uid-own",
		settings.StateDir+"="+filepath.Join(dir, "state"), settings.StatusSocket+"="+filepath.Join(dir, "status.sock"), settings.NRISocket+"="+filepath.Join(dir, "nri.sock"))
	own := plugintest.Sandbox("own")
	own.Uid = "uid-own"
	r := plugintest.StartRuntime(t, dir, own)
	begin(t, dir, func(c *exec.Cmd) { c.Env = append(c.Env, vars...) })
	r.WaitSynced(t)

	minted := plane.Counters().KeysMinted
	var findings []doctor.Finding
	var code int
	withManifestsCaps(t, func() { findings, code = examined(t, process(t, vars...)) })
	expectFinding(t, findingsOf(findings, "configuration"), doctor.ResultOK, "an OAuth client", "")
	expectFinding(t, findingsOf(findings, "plugin"), doctor.ResultOK, statussocket.ReadyText, "")
	expectFinding(t, findingsOf(findings, "NRI"), doctor.ResultOK, "registered with containerd v2.4.2, timeouts 5s for the registration and 2s for a request; it runs the plugin's pod", "")
	expectFinding(t, findingsOf(findings, "kernel features"), doctor.ResultOK, engine.TrialLink, "")
	expectFinding(t, findingsOf(findings, "capabilities"), doctor.ResultOK, "NET_BROADCAST", "")
	expectFinding(t, findingsOf(findings, "credentials"), doctor.ResultOK, "a key for tag:k8s-pod was minted, and deleted unused", "")
	expectFinding(t, findingsOf(findings, "control plane"), doctor.ResultOK, plane.ControlURL(), "")
	expectFinding(t, findingsOf(findings, "clock"), doctor.ResultOK, "as that of "+plane.APIURL(), "")
	expectFinding(t, findingsOf(findings, "DERP"), doctor.ResultUnknown, "before the first pod", "")
	expectFinding(t, findingsOf(findings, "state directory"), doctor.ResultOK, "free", "")
	expectFinding(t, findingsOf(findings, "leftovers"), doctor.ResultOK, "0 links, 0 records", "")
	expectFinding(t, findingsOf(findings, "open files"), doctor.ResultOK, "the plugin ", "")
	if now := plane.Counters().KeysMinted; now != minted+1 {
		t.Errorf("%d keys were minted for the look", now-minted)
	}
	if slices.ContainsFunc(findings, func(f doctor.Finding) bool { return f.Result == doctor.ResultFail }) || code != 0 {
		t.Errorf("exit code %d with %+v", code, findings)
	}
	var names []string
	for _, f := range findings {
		if !slices.Contains(names, f.Check) {
			names = append(names, f.Check)
		}
	}
	var want []string
	for _, name := range doctor.CheckNames() {
		if want = append(want, name); name == "DERP" {
			want = append(want, "UDP")
		}
	}
	if !slices.Equal(names, want) {
		t.Errorf("the order is %q", names)
	}
}

// TestDoctorWithoutPrivileges: a process that may do nothing can say so.
func TestDoctorWithoutPrivileges(t *testing.T) {
	cmd := process(t, settings.ConfigDir+"=/nowhere")
	cmd.Path = "/proc/self/exe" // its directory is root's
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	findings, code := examined(t, cmd)
	expectFinding(t, findingsOf(findings, "capabilities"), doctor.ResultFail, "NET_ADMIN, NET_BROADCAST, NET_RAW, SYS_ADMIN", doctor.RemedyCapabilities)
	expectFinding(t, findingsOf(findings, "kernel features"), doctor.ResultFail, engine.TrialNamespace+": operation not permitted", doctor.RemedyNamespaces)
	expectFinding(t, findingsOf(findings, "configuration"), doctor.ResultFail, "/nowhere", doctor.RemedyConfiguration)
	expectFinding(t, findingsOf(findings, "credentials"), doctor.ResultUnknown, "the configuration cannot be used", "")
	expectFinding(t, findingsOf(findings, "devices"), doctor.ResultUnknown, "the configuration cannot be used", "")
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
}

// TestDoctorIsEnded: SIGINT ends a doctor whose API hangs within seconds, with 2.
func TestDoctorIsEnded(t *testing.T) {
	s := plugintest.StartControl(t)
	asked, release := make(chan struct{}, 64), make(chan struct{})
	api := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-release
	}))
	t.Cleanup(api.Close)
	t.Cleanup(func() { close(release) })
	cmd := process(t, append(plugintest.PlaneVars(s), settings.APIURL+"="+api.URL, settings.StateDir+"="+t.TempDir())...)
	cmd.Args = append(cmd.Args, "doctor")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-asked
	began := time.Now()
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if took, code := time.Since(began), cmd.ProcessState.ExitCode(); took > 5*time.Second || code != 2 {
		t.Errorf("it ends after %v with %d", took, code)
	}
}

// TestDoctorInTheDark: where nothing is answered, neither a name nor a connection, the
// doctor says so in time.
func TestDoctorInTheDark(t *testing.T) {
	t.Parallel()
	cmd := process(t, settings.OAuthID+"=client", settings.OAuthSecret+"="+plugintest.Secret, settings.StateDir+"="+t.TempDir())
	var findings []doctor.Finding
	var code int
	var took time.Duration
	plugintest.InNetns(t, func() {
		lo, err := netlink.LinkByName("lo")
		plugintest.Must(t, err)
		plugintest.Must(t, netlink.LinkSetUp(lo))
		index := plugintest.AddLink(t, "uplink", 1500, "192.0.2.2/24")
		gateway := net.ParseIP("192.0.2.1")
		// One that is there and takes no packet.
		plugintest.Must(t, netlink.NeighAdd(&netlink.Neigh{LinkIndex: index, IP: gateway, State: netlink.NUD_PERMANENT, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}))
		_, all, err := net.ParseCIDR("0.0.0.0/0")
		plugintest.Must(t, err)
		plugintest.Must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: index, Dst: all, Gw: gateway}))
		began := time.Now()
		findings, code = examined(t, cmd)
		took = time.Since(began)
	})
	for _, name := range []string{"credentials", "control plane"} {
		expectFinding(t, findingsOf(findings, name), doctor.ResultFail, "", doctor.RemedyUnreachable)
	}
	if took > 20*time.Second || code != 1 {
		t.Errorf("it took %v and ended with %d", took, code)
	}
	t.Logf("it took %v", took)
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

// examined is what the program says, by a process of its own, and its exit code.
func examined(t *testing.T, cmd *exec.Cmd) (findings []doctor.Finding, code int) {
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

// TestDoctorIsMisused ends with 2.
func TestDoctorIsMisused(t *testing.T) {
	for _, args := range [][]string{{"doctor", "-yaml"}, {"doctor", "now"}, {"-bogus", "doctor"}, {"doctor", "-device-limit", "-1"}} {
		cmd := process(t)
		cmd.Args = append(cmd.Args, args...)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != 2 || !strings.HasPrefix(string(out), "tailscale-nri: ") {
			t.Errorf("%q ends with %d: %s", args, code, out)
		}
	}
}

// findingsOf are the findings of one check.
func findingsOf(findings []doctor.Finding, name string) []doctor.Finding {
	return slices.DeleteFunc(slices.Clone(findings), func(f doctor.Finding) bool { return f.Check != name })
}

// expectFinding wants a finding with that result and remedy, whose text holds seen.
func expectFinding(t *testing.T, findings []doctor.Finding, result, seen, remedy string) {
	t.Helper()
	if !slices.ContainsFunc(findings, func(f doctor.Finding) bool {
		return f.Result == result && strings.Contains(f.Seen, seen) && f.Remedy == remedy
	}) {
		t.Errorf("want %s, %q, remedy %q; got %+v", result, seen, remedy, findings)
	}
}
