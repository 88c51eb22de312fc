// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"tailscale-nri/engine"
	"tailscale-nri/k3d/lab/control"
	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/statustest"
)

// TestDoctorInterrupted: a doctor that is ended while a key is made has it deleted
// before it returns.
func TestDoctorInterrupted(t *testing.T) {
	s := startControl(t)
	m := withPlane(t, s)
	ctx, interrupt := context.WithCancel(t.Context())
	rec := &recorder{RoundTripper: m.transport}
	rec.answer = func(req *http.Request) []byte {
		if req.Method == http.MethodPost && req.URL.Path == keysPath {
			interrupt()
		}
		return nil
	}
	m.transport = rec
	var out strings.Builder
	if err := doctor(ctx, m, true, &out); err == nil || out.Len() > 0 {
		t.Errorf("interrupted, it ends with %v and %q", err, &out)
	}
	if made, deleted := rec.count("POST "+keysPath, " 200"), rec.count("DELETE "+keysPath+"/", " 200"); made != 1 || deleted != 1 {
		t.Errorf("%d keys were made and %d deleted: %q", made, deleted, rec.calls)
	}
}

// TestDoctorIsEnded: SIGINT ends a doctor whose API hangs within seconds, with 2.
func TestDoctorIsEnded(t *testing.T) {
	s := startControl(t)
	asked, release := make(chan struct{}, 64), make(chan struct{})
	api := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-release
	}))
	t.Cleanup(api.Close)
	t.Cleanup(func() { close(release) })
	cmd := process(t, append(planeVars(s), settings.APIURL+"="+api.URL, settings.StateDir+"="+t.TempDir())...)
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

// withProfile gives a machine another tailnet, called other.
func withProfile(t *testing.T, m *machine, s *control.Server, vars ...string) {
	t.Helper()
	m.cfg.Profiles = map[string]config.Config{"other": withPlane(t, s, vars...).cfg}
}

// TestDoctorOfProfiles: each tailnet's credentials are tried, for the tags of its own
// pods, and each control server is asked.
func TestDoctorOfProfiles(t *testing.T) {
	s := startControl(t)
	other, err := control.Start(control.Config{Tags: []string{"tag:other"}, OAuthClientSecret: plugintest.Secret})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Close)
	m := withPlane(t, s)
	withProfile(t, m, other, settings.Tags+"=tag:other")
	writeRecord(t, m.cfg.StateDir, "uid-other", "vetht0123456789", `"tags": ["tag:other"], "features": {"profile": "other"}`)
	got := look(t, m, checkMinting)
	expect(t, got, resultOK, "a key for tag:k8s-pod was minted", "")
	expect(t, got, resultOK, "profile other: a key for tag:other was minted", "")
	if len(got) != 2 {
		t.Errorf("got %+v", got)
	}
	expect(t, look(t, m, checkControl), resultOK, "profile other: "+other.ControlURL()+" answers", "")
	expect(t, look(t, m, checkDevices), resultOK, "profile other: 0 devices of this cluster", "")

	withProfile(t, m, other) // with the tags of the default
	expect(t, look(t, m, checkMinting), resultFail, "profile other: ", remedyCredentials)
	withProfile(t, m, other, settings.LoginServer+"=http://127.0.0.1:1", settings.Tags+"=tag:other")
	expect(t, look(t, m, checkControl), resultFail, "profile other: http://127.0.0.1:1 cannot be reached", remedyUnreachable)
	expect(t, look(t, m, checkClock), resultUnknown, "http://127.0.0.1:1 has not told the time", "")
}

// TestGoodAuthKey: a node that runs, and whose own key will end, says nothing about
// the auth key, nor does one of another tailnet.
func TestGoodAuthKey(t *testing.T) {
	m := testMachine(t)
	m.cfg.StatusSocket = statustest.Start(t, []engine.NodeStatus{
		{Namespace: "default", Pod: "soon", State: engine.Running, Reason: "its key expires at …: the node then logs in again with the auth key in TS_AUTHKEY"},
		{Namespace: "default", Pod: "other", State: engine.Pending, Reason: "the control plane refused the auth key in TS_AUTHKEY", Features: engine.Features{Profile: "other"}},
	})
	expect(t, look(t, m, checkMinting), resultOK, "1 pods here came in", "")
}

// TestNoEcho: what a server answers besides its reason is not shown. It may be what it
// was asked.
func TestNoEcho(t *testing.T) {
	echo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, password, _ := r.BasicAuth()
		w.Write([]byte(password))
	}))
	t.Cleanup(echo.Close)
	m := withPlane(t, startControl(t), settings.APIURL+"="+echo.URL)
	expect(t, look(t, m, checkMinting), resultFail, "does not work (HTTP 503)", remedyUnreachable)
}

// TestPodThatStarts: a pod that has come this moment is no finding.
func TestPodThatStarts(t *testing.T) {
	m := testMachine(t)
	m.cfg.StatusSocket = statustest.Start(t, []engine.NodeStatus{
		{Namespace: "default", Pod: "new", State: engine.Pending, Reason: "starting", Since: time.Now()},
		{Namespace: "default", Pod: "late", State: engine.Pending, Reason: "starting", Since: time.Now().Add(-time.Minute)},
	})
	got := look(t, m, checkPlugin)
	expect(t, got, resultWarn, "default/late is Pending: starting", remedyPods)
	if slices.ContainsFunc(got, func(f finding) bool { return strings.Contains(f.Seen, "default/new") }) {
		t.Errorf("got %+v", got)
	}
}

// TestLinksOfOthers: LXC's links are called veth and six letters or digits, and none of
// them is ours.
func TestLinksOfOthers(t *testing.T) {
	m := testMachine(t)
	inNetns(t, func() {
		for _, name := range []string{"vethtAb3xZ", "vethtabc12", "vethtabcdefghij"} {
			addLink(t, name, 1500, "10.0.0.1/24")
		}
		expect(t, look(t, m, checkLeftovers), resultOK, "0 links", "")
		expect(t, look(t, m, checkManagers), resultUnknown, "no link of a pod yet", "")
	})
}

// TestWithoutSTUN: where no DERP server has STUN, none can be missed.
func TestWithoutSTUN(t *testing.T) {
	dm := startControl(t).DERPMap()
	dm.Regions[900].Nodes[0].STUNPort = -1
	got := look(t, derpMachine(t, dm), checkPaths)
	expect(t, of(got, aboutDERP), resultOK, "connected to lab in", "")
	expect(t, of(got, aboutUDP), resultUnknown, "no DERP server has STUN", "")
}

// TestDoctorInTheDark: where nothing is answered, neither a name nor a connection, the
// doctor says so in time.
func TestDoctorInTheDark(t *testing.T) {
	t.Parallel()
	cmd := process(t, settings.OAuthID+"=client", settings.OAuthSecret+"="+plugintest.Secret, settings.StateDir+"="+t.TempDir())
	var findings []finding
	var code int
	var took time.Duration
	inNetns(t, func() {
		lo, err := netlink.LinkByName("lo")
		must(t, err)
		must(t, netlink.LinkSetUp(lo))
		index := addLink(t, "uplink", 1500, "192.0.2.2/24")
		gateway := net.ParseIP("192.0.2.1")
		// One that is there and takes no packet.
		must(t, netlink.NeighAdd(&netlink.Neigh{LinkIndex: index, IP: gateway, State: netlink.NUD_PERMANENT, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}))
		_, all, err := net.ParseCIDR("0.0.0.0/0")
		must(t, err)
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: index, Dst: all, Gw: gateway}))
		began := time.Now()
		findings, code = examined(t, cmd)
		took = time.Since(began)
	})
	for _, name := range []string{"credentials", "control plane"} {
		expect(t, of(findings, name), resultFail, "", remedyUnreachable)
	}
	if took > 20*time.Second || code != 1 {
		t.Errorf("it took %v and ended with %d", took, code)
	}
	t.Logf("it took %v", took)
}

// TestFindingsAsJSON: machines read them by these names.
func TestFindingsAsJSON(t *testing.T) {
	text, err := json.Marshal([]finding{fail("a", "b"), {Check: "c", Result: resultOK, Seen: "d"}})
	const want = `[{"check":"","result":"fail","seen":"a","remedy":"b"},{"check":"c","result":"ok","seen":"d"}]`
	if err != nil || string(text) != want {
		t.Errorf("%v\n%s", err, text)
	}
}
