// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"tailscale-nri/engine"
	"tailscale-nri/engine/tailnet"
	"tailscale-nri/k3d/lab/control"
	"tailscale-nri/k3d/lab/headscale"
	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/statustest"
)

// recorder notes what is asked of a server, and may answer in its place.
type recorder struct {
	http.RoundTripper
	mu     sync.Mutex
	calls  []string // "DELETE /api/v2/tailnet/-/keys/k1 200"
	answer func(*http.Request) []byte
}

func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := r.RoundTripper.RoundTrip(req)
	if err != nil {
		return res, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, fmt.Sprintf("%s %s %d", req.Method, req.URL.Path, res.StatusCode))
	if r.answer != nil {
		if body := r.answer(req); body != nil {
			res.Body.Close()
			res.Body, res.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		}
	}
	return res, nil
}

// count says how many calls begin with that.
func (r *recorder) count(prefix, suffix string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.calls {
		if strings.HasPrefix(c, prefix) && strings.HasSuffix(c, suffix) {
			n++
		}
	}
	return n
}

const keysPath = "/api/v2/tailnet/-/keys"

// TestCheckMinting: a key is made for each set of tags that is known, and each is
// deleted.
func TestCheckMinting(t *testing.T) {
	s := plugintest.StartControl(t)
	h := withPlane(t, s)
	rec := &recorder{RoundTripper: h.transport}
	h.transport = rec
	writeRecord(t, h.cfg.StateDir, "uid-web", "vetht0123456789", `"tags": ["tag:web"]`)
	got := look(t, h, checkMinting)
	for _, tags := range []string{"tag:k8s-pod", "tag:web"} {
		expect(t, got, ResultOK, "a key for "+tags+" was minted, and deleted unused", "")
	}
	if made, deleted := rec.count("POST "+keysPath, " 200"), rec.count("DELETE "+keysPath+"/", " 200"); made != 2 || deleted != 2 {
		t.Errorf("%d keys were made and %d deleted: %q", made, deleted, rec.calls)
	}

	expect(t, look(t, withPlane(t, s, settings.Tags+"=tag:other"), checkMinting), ResultFail, "tag:other", remedyCredentials)
	expect(t, look(t, withPlane(t, s, settings.OAuthSecret+"=wrong"), checkMinting), ResultFail, "refuses the OAuth client", remedyCredentials)
	expect(t, look(t, withPlane(t, s, settings.APIURL+"=http://127.0.0.1:1"), checkMinting), ResultFail, "connection refused", RemedyUnreachable)

	s.AddFault(control.Fault{Path: keysPath, Status: http.StatusForbidden, Message: "not allowed"})
	expect(t, look(t, withPlane(t, s), checkMinting), ResultFail, "may not do this (not allowed)", remedyCredentials)
	s.ClearFaults()
	s.AddFault(control.Fault{Path: keysPath + "/", Status: http.StatusForbidden, Message: "not allowed"})
	expect(t, look(t, withPlane(t, s), checkMinting), ResultWarn, "deleting the trial key", remedyKeyLeft)
	s.ClearFaults()
	s.AddFault(control.Fault{Path: "/api/v2/", Hang: true})
	slow := withPlane(t, s)
	slow.patience = 200 * time.Millisecond
	expect(t, examine(t.Context(), slow, []check{{"", checkMinting}}), ResultFail, "minting a trial key: context deadline exceeded: no answer from "+s.APIURL(), RemedyUnreachable)
}

// TestCheckAuthKey: it is not used. What is known is what became of the pods.
func TestCheckAuthKey(t *testing.T) {
	h := testHost(t)
	expect(t, look(t, h, checkMinting), ResultUnknown, "would make a device", "")
	expect(t, look(t, testHost(t, settings.AuthKey+"=hskey-auth-"+plugintest.Secret), checkMinting), ResultFail, "does not begin with tskey-auth-", remedyAuthKey)
	own := testHost(t, settings.AuthKey+"=hskey-auth-"+plugintest.Secret, settings.LoginServer+"=http://headscale.example.com")
	expect(t, look(t, own, checkMinting), ResultUnknown, "would make a device", "")
	expect(t, look(t, own, checkDevices), ResultUnknown, "nobody can list devices", "")

	h.cfg.StatusSocket = statustest.Start(t, plugintest.TwoNodes())
	expect(t, look(t, h, checkMinting), ResultOK, "1 pods here came in", "")
	static, err := tailnet.NewStatic(tailnet.StaticConfig{AuthKey: "k", Names: config.TailnetNames})
	if err != nil {
		t.Fatal(err)
	}
	refusal := static.Refusal("authkey expired").Error()
	h.cfg.StatusSocket = statustest.Start(t, append(plugintest.TwoNodes(), engine.NodeStatus{Namespace: "default", Pod: "late", State: engine.Pending, Reason: refusal}))
	expect(t, look(t, h, checkMinting), ResultFail, "default/late", remedyAuthKey)
}

func TestCheckControl(t *testing.T) {
	s := plugintest.StartControl(t)
	expect(t, look(t, withPlane(t, s), checkControl), ResultOK, s.ControlURL()+" answers, and takes the upgrade", "")
	expect(t, look(t, withPlane(t, s, settings.LoginServer+"="+s.APIURL()), checkControl), ResultFail, "no control server's key", remedyNotControl)
	expect(t, look(t, withPlane(t, s, settings.LoginServer+"=http://127.0.0.1:1"), checkControl), ResultFail, "connection refused", RemedyUnreachable)

	// Behind a reverse proxy that passes on what it knows: no header Upgrade.
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		res, err := http.Get(s.ControlURL() + r.URL.String())
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer res.Body.Close()
		w.WriteHeader(res.StatusCode)
		io.Copy(w, res.Body)
	}))
	t.Cleanup(front.Close)
	half := withPlane(t, s, settings.LoginServer+"="+front.URL)
	half.patience = time.Second
	expect(t, look(t, half, checkControl), ResultFail, "does not take the upgrade", remedyUpgrade)

	at, _ := plugintest.ConnectProxy(t, "user", "password", "127.0.0.1:1")
	behind := withPlane(t, s, settings.LoginServer+"=https://control.example.com", settings.HTTPSProxy+"=http://user:"+plugintest.Secret+"@"+at)
	expect(t, look(t, behind, checkControl), ResultFail, "Proxy Authentication Required", remedyProxy)
	expect(t, look(t, behind, checkProxy), ResultOK, "takes connections", "")

	// A certificate that is not valid yet, by the clock of this host.
	tls := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(tls.Close)
	past := withPlane(t, s, settings.LoginServer+"="+tls.URL)
	tr := tls.Client().Transport.(*http.Transport).Clone()
	tr.TLSClientConfig.Time = func() time.Time { return time.Unix(-1e9, 0) }
	past.transport = tr
	expect(t, look(t, past, checkControl), ResultFail, "not yet valid", remedyClock)
	expect(t, look(t, past, checkClock), ResultFail, "has not told the time", remedyClock)
}

// TestCheckHeadscale: a real one answers as Tailscale's control server does.
func TestCheckHeadscale(t *testing.T) {
	relay := plugintest.StartControl(t)
	binary, err := filepath.Abs("../../../.build/bin/headscale")
	if err != nil {
		t.Fatal(err)
	}
	hs, err := headscale.Start(t.Context(), headscale.Config{
		Addr: netip.MustParseAddr("127.0.0.1"), Dir: t.TempDir(), Binary: binary, DERPMap: relay.DERPMap(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hs.Close() })
	h := testHost(t, settings.LoginServer+"="+hs.URL())
	expect(t, look(t, h, checkControl), ResultOK, "takes the upgrade", "")
	for _, f := range look(t, h, checkClock) {
		if f.Result != ResultOK && !strings.Contains(f.Seen, "without a Date") {
			t.Errorf("the clock: %+v", f)
		}
	}
	expect(t, of(look(t, h, checkPaths), aboutDERP), ResultUnknown, "not known before the first pod", "")
	nodes, err := hs.Nodes(t.Context())
	if err != nil || len(nodes) != 0 {
		t.Errorf("it has the nodes %+v, %v", nodes, err)
	}
}

// TestCheckInHeadscalesManner: its API makes and deletes keys as well.
func TestCheckInHeadscalesManner(t *testing.T) {
	s, err := control.Start(control.Config{OAuthClientSecret: plugintest.Secret, Headscale: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	h := withPlane(t, s)
	expect(t, look(t, h, checkMinting), ResultOK, "deleted unused", "")
	expect(t, look(t, h, checkDevices), ResultOK, "0 devices of this cluster", "")
}

func TestCheckClock(t *testing.T) {
	var date string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Date"] = []string{date}
	}))
	t.Cleanup(server.Close)
	h := testHost(t, settings.LoginServer+"="+server.URL)
	for off, want := range map[time.Duration]Finding{
		0:                 fine("as that of " + server.URL),
		10 * time.Second:  fine("behind that of"),
		-20 * time.Second: fine("ahead of that of"),
		-time.Minute:      warn("ahead of that of", remedyClock),
		time.Minute:       warn("behind that of", remedyClock),
		24 * time.Hour:    fail("behind that of", remedyClock),
		-24 * time.Hour:   fail("ahead of that of", remedyClock),
	} {
		date = time.Now().Add(off + 500*time.Millisecond).UTC().Format(http.TimeFormat)
		expect(t, look(t, h, checkClock), want.Result, want.Seen, want.Remedy)
	}
	date = "yesterday"
	expect(t, look(t, h, checkClock), ResultUnknown, "without a Date", "")
}

func TestCheckProxy(t *testing.T) {
	expect(t, look(t, testHost(t), checkProxy), ResultOK, "none is set", "")
	closed := testHost(t, settings.HTTPSProxy+"=http://user:"+plugintest.Secret+"@127.0.0.1:1", settings.NoProxy+"=10.0.0.0/8")
	expect(t, look(t, closed, checkProxy), ResultFail, "127.0.0.1:1 cannot be reached", remedyProxy)
	for host, want := range map[string]string{"proxy:3128": "proxy:3128", "proxy": "proxy:80", "[fd00::1]": "[fd00::1]:80", "secure": "secure:443"} {
		if got := withPort(host, "https://secure"); got != want {
			t.Errorf("%s is dialled as %s, want %s", host, got, want)
		}
	}
}

// derpHost is one for which the DERP map is Tailscale's, which is dm.
func derpHost(t *testing.T, dm *tailcfg.DERPMap) *Host {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(dm) }))
	t.Cleanup(server.Close)
	h := testHost(t)
	h.derpMapAt = server.URL
	return h
}

// TestCheckPaths has DERP and STUN answer, and then each of them not.
func TestCheckPaths(t *testing.T) {
	s := plugintest.StartControl(t)
	dm := s.DERPMap()
	got := look(t, derpHost(t, dm), checkPaths)
	expect(t, of(got, aboutDERP), ResultOK, "connected to lab in", "")
	expect(t, of(got, aboutUDP), ResultOK, "STUN answers: IPv4 as 127.0.0.1:", "")

	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	blocked := dm.Clone()
	blocked.Regions[900].Nodes[0].STUNPort = silent.LocalAddr().(*net.UDPAddr).Port
	got = look(t, derpHost(t, blocked), checkPaths)
	expect(t, of(got, aboutDERP), ResultOK, "connected to lab in", "")
	expect(t, of(got, aboutUDP), ResultWarn, "no STUN server has answered", remedyUDP)

	down := dm.Clone()
	down.Regions[900].Nodes[0].DERPPort = 1
	got = look(t, derpHost(t, down), checkPaths)
	expect(t, of(got, aboutDERP), ResultFail, "lab not:", remedyDERP)

	half := dm.Clone()
	second := down.Regions[900].Clone()
	second.RegionID, second.RegionCode, second.Nodes[0].RegionID, second.Nodes[0].Name = 901, "far", 901, "901a"
	half.Regions[901] = second
	got = look(t, derpHost(t, half), checkPaths)
	expect(t, of(got, aboutDERP), ResultWarn, "far not:", remedyDERP)

	expect(t, of(look(t, withPlane(t, s), checkPaths), aboutDERP), ResultUnknown, "not known before the first pod", "")
	nothing := testHost(t)
	nothing.derpMapAt = "http://127.0.0.1:1"
	expect(t, of(look(t, nothing, checkPaths), aboutUDP), ResultUnknown, "not tried", "")
	nothing.derpMapAt = s.APIURL()
	expect(t, of(look(t, nothing, checkPaths), aboutDERP), ResultUnknown, "cannot be fetched", "")
}

// TestCheckDevices counts those that are marked as this cluster's.
func TestCheckDevices(t *testing.T) {
	s := plugintest.StartControl(t)
	h := withPlane(t, s)
	var devices []map[string]any
	for range 9 {
		machine := key.NewMachine().Public()
		lock, ok := h.oauth(h.cfg).LockKey(machine, false)
		if !ok {
			t.Fatal("devices are not marked")
		}
		devices = append(devices, map[string]any{"nodeId": "n", "machineKey": machine.String(), "tailnetLockKey": lock.Public()})
	}
	devices = append(devices, map[string]any{"nodeId": "stranger"})
	h.transport = &recorder{RoundTripper: h.transport, answer: func(req *http.Request) []byte {
		if !strings.HasSuffix(req.URL.Path, "/devices") {
			return nil
		}
		body, _ := json.Marshal(map[string]any{"devices": devices})
		return body
	}}
	for limit, want := range map[int]Finding{
		0:  fine("9 devices of this cluster, 10 in the tailnet"),
		11: fine("11 allowed"),
		10: warn("10 allowed", remedyDevices),
		9:  fail("9 allowed", remedyDevices),
	} {
		h.limit = limit
		expect(t, look(t, h, checkDevices), want.Result, want.Seen, want.Remedy)
	}
	s.AddFault(control.Fault{Path: "/api/v2/tailnet/-/devices", Status: http.StatusForbidden, Message: "no"})
	expect(t, look(t, withPlane(t, s), checkDevices), ResultFail, "may not do this", remedyCredentials)
	s.ClearFaults()
	expect(t, look(t, withPlane(t, s, settings.APIURL+"=http://127.0.0.1:1"), checkDevices), ResultUnknown, "not counted", "")
}
