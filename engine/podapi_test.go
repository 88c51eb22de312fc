// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tailscale.com/client/local"
	"tailscale.com/ipn"
	"tailscale.com/tailcfg"

	"tailscale-nri/k3d/lab/control"
)

// rootAPI is the engine's PodAPI on a server.
type rootAPI struct {
	*world
	url string
}

func (w *world) rootAPI() rootAPI {
	srv := httptest.NewServer(w.PodAPI())
	w.t.Cleanup(srv.Close)
	return rootAPI{w, srv.URL}
}

// of returns a client of a pod's LocalAPI.
func (a rootAPI) of(pod string) *local.Client {
	return &local.Client{OmitAuth: true, Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		r = r.Clone(r.Context())
		r.URL.Host, r.URL.Path = strings.TrimPrefix(a.url, "http://"), PodAPIPrefix+pod+r.URL.Path
		return http.DefaultTransport.RoundTrip(r)
	})}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// get returns the answer's status and body.
func (a rootAPI) get(method, path string) (int, string) {
	a.t.Helper()
	req, err := http.NewRequest(method, a.url+path, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	res, err := http.DefaultTransport.RoundTrip(req) // redirections are answers
	if err != nil {
		a.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// TestPodAPI: root looks into the node of a pod that has not asked for a LocalAPI.
func TestPodAPI(t *testing.T) {
	w := newWorld(t)
	w.boot()
	_, podA := w.pod("a")
	_, podB := w.pod("b")
	w.mustAttach(podA)
	w.mustAttach(podB)
	nodeA, nodeB := w.await(podA.UID, Running), w.await(podB.UID, Running)
	api := w.rootAPI()
	c := api.of("default/a")
	w.until("a sees b", func() bool {
		st, err := c.Status(t.Context())
		return err == nil && len(st.Peer) == 1 && string(st.Self.ID) == nodeA.NodeID
	}, func() string { return "" })
	who, err := c.WhoIs(t.Context(), netip.AddrPortFrom(nodeB.Addresses[0], 80).String())
	if err != nil || string(who.Node.StableID) != nodeB.NodeID {
		t.Errorf("whois: %+v, %v", who, err)
	}
	if pong, err := c.Ping(t.Context(), nodeB.Addresses[0], tailcfg.PingTSMP); err != nil || pong.Err != "" {
		t.Errorf("ping: %+v, %v", pong, err)
	}
	code, body := api.get("GET", "/v1/pods/default/a/localapi/v0/prefs")
	var p ipn.Prefs
	if err := json.Unmarshal([]byte(body), &p); code != 200 || err != nil || p.Hostname != podA.Hostname || p.Persist != nil {
		t.Errorf("prefs: %d %v %s", code, err, body)
	}
	if strings.Contains(body, "key:") {
		t.Errorf("keys in %s", body)
	}
	var v PodView
	code, body = api.get("GET", "/v1/pods/default/b")
	if err := json.Unmarshal([]byte(body), &v); code != 200 || err != nil || v.UID != podB.UID || v.NetNS.Check() != nil || v.NetNS.Ino == 0 {
		t.Errorf("view: %d %v %s", code, err, body)
	}
	w.until("the node has measured", func() bool {
		var n Netcheck
		code, body = api.get("GET", "/v1/pods/default/a/netcheck")
		err := json.Unmarshal([]byte(body), &n)
		return code == 200 && err == nil && n.Report != nil && n.Report.UDP && n.HomeDERP != "" && n.Port != 0
	}, func() string { return body })
}

// TestPodAPIReadsOnly: not even root can change a node by it, or reach it by a path in
// disguise.
func TestPodAPIReadsOnly(t *testing.T) {
	w := newWorld(t)
	w.boot()
	_, pod := w.pod("a")
	w.mustAttach(pod)
	node := w.await(pod.UID, Running)
	api := w.rootAPI()
	c, ctx := api.of("default/a"), t.Context()
	for what, try := range map[string]func() error{
		"prefs": func() error {
			_, err := c.EditPrefs(ctx, &ipn.MaskedPrefs{Prefs: ipn.Prefs{ShieldsUp: true}, ShieldsUpSet: true})
			return err
		},
		"logout":   func() error { return c.Logout(ctx) },
		"start":    func() error { return c.Start(ctx, ipn.Options{}) },
		"login":    func() error { return c.StartLoginInteractive(ctx) },
		"shutdown": func() error { return c.ShutdownTailscaled(ctx) },
		"dial":     func() error { _, err := c.DialTCP(ctx, "127.0.0.1", 22); return err },
		"id token": func() error { _, err := c.IDToken(ctx, "x"); return err },
		"peerapi":  func() error { _, err := c.Ping(ctx, node.Addresses[0], tailcfg.PingPeerAPI); return err },
	} {
		if err := try(); err == nil || !strings.Contains(err.Error(), "root can read the LocalAPI") {
			t.Errorf("%s: %v", what, err)
		}
	}
	const of = "/v1/pods/default/a"
	for _, request := range []string{
		"POST " + of, "POST " + of + "/netcheck", "PATCH " + of + "/localapi/v0/prefs", "HEAD " + of + "/localapi/v0/prefs",
		"GET " + of + "/localapi/v0/%73tatus", "GET /v1/pods/default/%61/localapi/v0/status", "GET " + of + "/localapi/v0//status",
		"GET " + of + "/localapi/v0/../v0/status", "GET " + of + "/localapi/v0/status?pod=b", "GET /v1/pods/default/a%2Fb/localapi/v0/status",
		"GET " + of + "/localapi/", "DELETE " + of + "/localapi/v0/status", "GET " + of + "/else", "GET /v1/pods/", "POST " + of + "/localapi/v0/logout",
	} {
		method, path, _ := strings.Cut(request, " ")
		if code, body := api.get(method, path); code < 300 {
			t.Errorf("%s: %d %s", request, code, body)
		}
	}
	if code, body := api.get("GET", of+"/localapi/v0/status?peers=false"); code != http.StatusOK {
		t.Errorf("the same in earnest: %d %s", code, body)
	}
	if now := w.statusOf("uid-a"); now.State != Running || now.NodeID != node.NodeID {
		t.Errorf("the node was %+v, is %+v", node, now)
	}
}

// TestPodAPIUnknown: for an unknown pod the answer lists the known ones, and it says
// why a node does not answer.
func TestPodAPIUnknown(t *testing.T) {
	w := newWorld(t)
	w.control.AddFault(control.Fault{Path: "/api/v2/oauth/token", Status: 401, Message: "API token invalid"})
	w.boot()
	api := w.rootAPI()
	if code, body := api.get("GET", "/v1/pods/default/web"); code != http.StatusNotFound || !strings.Contains(body, "default/web on this host has a tailnet node: no pod here has one") {
		t.Errorf("%d %q", code, body)
	}
	for i := range 12 {
		_, pod := w.pod(fmt.Sprintf("p%02d", i))
		w.mustAttach(pod)
	}
	for _, path := range []string{"", "/netcheck", "/localapi/v0/status"} {
		code, body := api.get("GET", "/v1/pods/other/p00"+path)
		if code != http.StatusNotFound || !strings.Contains(body, "there are default/p00, default/p01") || !strings.Contains(body, "default/p09 and 2 more") {
			t.Errorf("%q: %d %q", path, code, body)
		}
	}
	var err error
	w.until("the answer says why", func() bool {
		_, err = api.of("default/p00").Status(t.Context())
		return err != nil && strings.Contains(err.Error(), "the pod's node is not up: ") && strings.Contains(err.Error(), "OAuth client")
	}, func() string { return fmt.Sprint(err) })
	if code, body := api.get("GET", "/v1/pods/default/p00/netcheck"); code != http.StatusServiceUnavailable {
		t.Errorf("%d %q", code, body)
	}
}

// TestPodAPINamesake: a pod that was created again under its name is asked, and not its
// predecessor that still leaves.
func TestPodAPINamesake(t *testing.T) {
	w := newWorld(t)
	w.boot()
	_, old := w.pod("a")
	w.mustAttach(old)
	w.await(old.UID, Running)
	if err := w.Detach(t.Context(), old.SandboxID); err != nil {
		t.Fatal(err)
	}
	_, young := w.pod("young")
	young.Name = old.Name
	w.mustAttach(young)
	w.await(young.UID, Running)
	if v, _, ok := w.podNamed("default", "a"); !ok || v.UID != young.UID {
		t.Errorf("got %+v", v)
	}
}

// TestPodAPISlowReader: a caller that does not read the answer keeps others from that
// node for a while and not for good, and from no other node.
func TestPodAPISlowReader(t *testing.T) {
	w := newWorld(t)
	w.boot()
	for _, name := range []string{"a", "b", "c", "d"} {
		w.join(name)
	}
	const patience = 3 * time.Second
	a := &podAPI{w.Engine, newAPITurns().work, patience}
	w.until("a sees all, which is more than is buffered", func() bool {
		st, err := w.rootAPI().of("default/a").Status(t.Context())
		return err == nil && len(st.Peer) == 3
	}, func() string { return "" })
	ln := &pipeListener{make(chan net.Conn), make(chan struct{})}
	srv := &http.Server{Handler: a.handler()}
	go srv.Serve(ln)
	defer srv.Close()
	dial := func() net.Conn {
		ours, theirs := net.Pipe()
		ln.conns <- theirs
		return ours
	}
	const request = "GET /v1/pods/default/a/localapi/v0/status HTTP/1.1\r\nHost: x\r\n\r\n"
	stalled := dial()
	defer stalled.Close()
	fmt.Fprint(stalled, request)
	looks := w.nodeOfUID("uid-a").serving.looks
	w.until("the answer is under way", func() bool { return len(looks) == 1 }, func() string { return "" })
	if code, body := w.rootAPI().get("GET", "/v1/pods/default/b/localapi/v0/status"); code != http.StatusOK || len(looks) != 1 {
		t.Errorf("another node: %d, after the stalled answer's end: %v, %s", code, len(looks) != 1, body)
	}
	start := time.Now()
	w.until("the turn is another's", func() bool { return len(looks) == 0 }, func() string { return "" })
	if took := time.Since(start); took > patience+5*time.Second {
		t.Errorf("it took %v", took)
	}
	// A connection outlives the deadline of an answer that was read.
	c := dial()
	defer c.Close()
	r := bufio.NewReader(c)
	for range 2 {
		fmt.Fprint(c, request)
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
			t.Errorf("%v %v", res.Status, err)
		}
		time.Sleep(patience + 100*time.Millisecond)
	}
}

// pipeListener has connections that buffer nothing.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { close(l.closed); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{} }
