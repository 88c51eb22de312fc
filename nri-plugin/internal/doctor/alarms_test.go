// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

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
	s := plugintest.StartControl(t)
	h := withPlane(t, s)
	ctx, interrupt := context.WithCancel(t.Context())
	rec := &recorder{RoundTripper: h.transport}
	rec.answer = func(req *http.Request) []byte {
		if req.Method == http.MethodPost && req.URL.Path == keysPath {
			interrupt()
		}
		return nil
	}
	h.transport = rec
	var out strings.Builder
	if err := Run(ctx, h, true, &out); err == nil || out.Len() > 0 {
		t.Errorf("interrupted, it ends with %v and %q", err, &out)
	}
	if made, deleted := rec.count("POST "+keysPath, " 200"), rec.count("DELETE "+keysPath+"/", " 200"); made != 1 || deleted != 1 {
		t.Errorf("%d keys were made and %d deleted: %q", made, deleted, rec.calls)
	}
}

// withProfile gives a host another tailnet, called other.
func withProfile(t *testing.T, h *Host, s *control.Server, vars ...string) {
	t.Helper()
	h.cfg.Profiles = map[string]config.Config{"other": withPlane(t, s, vars...).cfg}
}

// TestDoctorOfProfiles: each tailnet's credentials are tried, for the tags of its own
// pods, and each control server is asked.
func TestDoctorOfProfiles(t *testing.T) {
	s := plugintest.StartControl(t)
	other, err := control.Start(control.Config{Tags: []string{"tag:other"}, OAuthClientSecret: plugintest.Secret})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Close)
	h := withPlane(t, s)
	withProfile(t, h, other, settings.Tags+"=tag:other")
	writeRecord(t, h.cfg.StateDir, "uid-other", "vetht0123456789", `"tags": ["tag:other"], "features": {"profile": "other"}`)
	got := look(t, h, checkMinting)
	expect(t, got, ResultOK, "a key for tag:k8s-pod was minted", "")
	expect(t, got, ResultOK, "in the tailnet of profile other: a key for tag:other was minted", "")
	if len(got) != 2 {
		t.Errorf("got %+v", got)
	}
	expect(t, look(t, h, checkControl), ResultOK, "in the tailnet of profile other: "+other.ControlURL()+" answers", "")
	expect(t, look(t, h, checkDevices), ResultOK, "in the tailnet of profile other: 0 devices of this cluster", "")

	withProfile(t, h, other) // with the tags of the default
	expect(t, look(t, h, checkMinting), ResultFail, "in the tailnet of profile other: ", remedyCredentials)
	withProfile(t, h, other, settings.LoginServer+"=http://127.0.0.1:1", settings.Tags+"=tag:other")
	expect(t, look(t, h, checkControl), ResultFail, "in the tailnet of profile other: http://127.0.0.1:1 cannot be reached", RemedyUnreachable)
	expect(t, look(t, h, checkClock), ResultUnknown, "http://127.0.0.1:1 has not told the time", "")
}

// TestGoodAuthKey: a node that runs, and whose own key will end, says nothing about
// the auth key, nor does one of another tailnet.
func TestGoodAuthKey(t *testing.T) {
	h := testHost(t)
	h.cfg.StatusSocket = statustest.Start(t, []engine.NodeStatus{
		{Namespace: "default", Pod: "soon", State: engine.Running, Reason: "its key expires at …: the node then logs in again with the auth key in TS_AUTHKEY"},
		{Namespace: "default", Pod: "other", State: engine.Pending, Reason: "the control plane refused the auth key in TS_AUTHKEY", Features: engine.Features{Profile: "other"}},
	})
	expect(t, look(t, h, checkMinting), ResultOK, "1 pods here came in", "")
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
	h := withPlane(t, plugintest.StartControl(t), settings.APIURL+"="+echo.URL)
	expect(t, look(t, h, checkMinting), ResultFail, "does not work (HTTP 503)", RemedyUnreachable)
}

// TestPodThatStarts: a pod that has only just come is not a finding.
func TestPodThatStarts(t *testing.T) {
	h := testHost(t)
	h.cfg.StatusSocket = statustest.Start(t, []engine.NodeStatus{
		{Namespace: "default", Pod: "new", State: engine.Pending, Reason: "starting", Since: time.Now()},
		{Namespace: "default", Pod: "late", State: engine.Pending, Reason: "starting", Since: time.Now().Add(-time.Minute)},
	})
	got := look(t, h, checkPlugin)
	expect(t, got, ResultWarn, "default/late is Pending: starting", remedyPods)
	if slices.ContainsFunc(got, func(f Finding) bool { return strings.Contains(f.Seen, "default/new") }) {
		t.Errorf("got %+v", got)
	}
}

// TestLinksOfOthers: LXC's links are called veth and six letters or digits, and none of
// them is ours.
func TestLinksOfOthers(t *testing.T) {
	h := testHost(t)
	plugintest.InNetns(t, func() {
		for _, name := range []string{"vethtAb3xZ", "vethtabc12", "vethtabcdefghij"} {
			plugintest.AddLink(t, name, 1500, "10.0.0.1/24")
		}
		expect(t, look(t, h, checkLeftovers), ResultOK, "0 links", "")
		expect(t, look(t, h, checkManagers), ResultUnknown, "no link of a pod yet", "")
	})
}

// TestWithoutSTUN: where no DERP server has STUN, none can be missed.
func TestWithoutSTUN(t *testing.T) {
	dm := plugintest.StartControl(t).DERPMap()
	dm.Regions[900].Nodes[0].STUNPort = -1
	got := look(t, derpHost(t, dm), checkPaths)
	expect(t, of(got, aboutDERP), ResultOK, "connected to lab in", "")
	expect(t, of(got, aboutUDP), ResultUnknown, "no DERP server has STUN", "")
}

// TestFindingsAsJSON: programs read them by these names.
func TestFindingsAsJSON(t *testing.T) {
	text, err := json.Marshal([]Finding{fail("a", "b"), {Check: "c", Result: ResultOK, Seen: "d"}})
	const want = `[{"check":"","result":"fail","seen":"a","remedy":"b"},{"check":"c","result":"ok","seen":"d"}]`
	if err != nil || string(text) != want {
		t.Errorf("%v\n%s", err, text)
	}
}
