// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"tailscale.com/client/local"
	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tailcfg"
	"tailscale.com/tstime"

	"tailscale-nri/k3d/lab/control"
)

// apiOf attaches a pod with a LocalAPI, waits for it and returns a client.
func (w *world) apiOf(name string) (*apiClient, NodeStatus) {
	w.t.Helper()
	_, pod := w.pod(name)
	pod.Features.Socket = true
	w.mustAttach(pod)
	dir, err := w.SocketDir(pod.UID)
	if err != nil {
		w.t.Fatal(err)
	}
	return newAPIClient(w.t, dir), w.await(pod.UID, Running)
}

// apiClient is in a container of the pod, as far as the socket goes.
type apiClient struct {
	local.Client
	dir string
}

func newAPIClient(t *testing.T, dir string) *apiClient {
	c := &apiClient{dir: dir}
	c.Client.Dial = func(context.Context, string, string) (net.Conn, error) { return c.dial() }
	c.Client.OmitAuth = true
	return c
}

// dial goes by a descriptor, since the test's directory has a long name.
func (c *apiClient) dial() (net.Conn, error) {
	fd, err := unix.Open(c.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/%s", fd, socketFile))
}

// send sends text and returns the answer's status and body.
func (c *apiClient) send(text string) (int, string, error) {
	conn, err := c.dial()
	if err != nil {
		return 0, "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		return 0, "", err
	}
	method, _, _ := strings.Cut(text, " ")
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, string(body), err
}

func get(path string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: local-tailscaled.sock\r\n\r\n"
}

// TestLocalAPI: Tailscale's own client reads the pod's node, and learns who calls it.
func TestLocalAPI(t *testing.T) {
	w := newWorld(t)
	w.boot()
	a, nodeA := w.apiOf("a")
	b, nodeB := w.apiOf("b")
	for client, node := range map[*apiClient]NodeStatus{a: nodeA, b: nodeB} {
		st, err := client.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if st.BackendState != ipn.Running.String() || string(st.Self.ID) != node.NodeID || st.TailscaleIPs[0] != node.Addresses[0] {
			t.Errorf("status of %s is of %v %v, %s", node.Pod, st.Self.ID, st.TailscaleIPs, st.BackendState)
		}
	}
	w.until("a sees b", func() bool {
		st, err := a.Status(t.Context())
		return err == nil && len(st.Peer) == 1
	}, func() string { return "" })
	if st, err := a.StatusWithoutPeers(t.Context()); err != nil || len(st.Peer) != 0 {
		t.Errorf("without peers: %v, %v", st, err)
	}
	who, err := a.WhoIs(t.Context(), netip.AddrPortFrom(nodeB.Addresses[0], 80).String())
	if err != nil || string(who.Node.StableID) != nodeB.NodeID {
		t.Errorf("whois: %+v, %v", who, err)
	}
	if _, err := a.WhoIs(t.Context(), "192.0.2.1:80"); !errors.Is(err, local.ErrPeerNotFound) {
		t.Errorf("whois of nobody: %v", err)
	}
	if pong, err := a.Ping(t.Context(), nodeB.Addresses[0], tailcfg.PingTSMP); err != nil || pong.Err != "" {
		t.Errorf("ping: %+v, %v", pong, err)
	}
	if m, err := a.CurrentDERPMap(t.Context()); err != nil || len(m.Regions) == 0 {
		t.Errorf("DERP map: %v, %v", m, err)
	}
	if m, err := a.UserMetrics(t.Context()); err != nil || !strings.Contains(string(m), "tailscaled_") {
		t.Errorf("metrics: %q, %v", m, err)
	}
}

// TestLocalAPIReadsOnly: requests that would change the node are refused, in every
// form.
func TestLocalAPIReadsOnly(t *testing.T) {
	w := newWorld(t)
	w.boot()
	c, node := w.apiOf("a")
	ctx := t.Context()
	for what, try := range map[string]func() error{
		"prefs": func() error {
			_, err := c.EditPrefs(ctx, &ipn.MaskedPrefs{Prefs: ipn.Prefs{ShieldsUp: true}, ShieldsUpSet: true})
			return err
		},
		"read prefs":   func() error { _, err := c.GetPrefs(ctx); return err },
		"logout":       func() error { return c.Logout(ctx) },
		"start":        func() error { return c.Start(ctx, ipn.Options{}) },
		"login":        func() error { return c.StartLoginInteractive(ctx) },
		"bus":          func() error { _, err := c.WatchIPNBus(ctx, 0); return err },
		"profiles":     func() error { _, _, err := c.ProfileStatus(ctx); return err },
		"shutdown":     func() error { return c.ShutdownTailscaled(ctx) },
		"dial":         func() error { _, err := c.DialTCP(ctx, "127.0.0.1", 22); return err },
		"id token":     func() error { _, err := c.IDToken(ctx, "x"); return err },
		"goroutines":   func() error { _, err := c.Goroutines(ctx); return err },
		"ping of HTTP": func() error { _, err := c.Ping(ctx, node.Addresses[0], tailcfg.PingPeerAPI); return err },
	} {
		err := try()
		t.Logf("%s: %v", what, err)
		if err == nil || !strings.Contains(err.Error(), "tailscale-nri: a pod can read") {
			t.Errorf("%s: %v", what, err)
		}
	}
	const host = " HTTP/1.1\r\nHost: local-tailscaled.sock\r\n"
	for _, text := range []string{
		get("/"), get("/localapi/v0/../v0/prefs"), get("/localapi/v0/status/../prefs"), get("//localapi/v0/status"),
		get("/localapi/v0//status"), get("/localapi/v0/status/"), get("/localapi/v0/STATUS"), get("/localapi/v0/%73tatus"),
		get("http://local-tailscaled.sock/localapi/v0/status"), get("/localapi/v0/status?peers=true&peers=false"),
		get("/localapi/v0/status?pod=uid-b"), get("/localapi/v0/whois?addr=" + strings.Repeat("1", 300)),
		get("/localapi/v0/whois;addr=1"), get("/localapi/v0/status?a;b"), get("/localapi/v0/debug-goroutines"), get("*"),
		"POST /localapi/v0/status" + host + "\r\n", "HEAD /localapi/v0/status" + host + "\r\n",
		"PATCH /localapi/v0/prefs" + host + "Content-Length: 2\r\n\r\n{}", "OPTIONS *" + host + "\r\n",
		"POST /localapi/v0/ping?ip=100.64.0.1&type=disco" + host + "Content-Length: 12\r\nContent-Type: application/x-www-form-urlencoded\r\n\r\ntype=peerapi",
		"POST /localapi/v0/ping?ip=100.64.0.1" + host + "\r\n",
		"POST /localapi/v0/ping?ip=100.64.0.1&type=disco&size=-70000" + host + "\r\n",
		"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n",
		"GET /localapi/v0/status" + host + "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		"GET /localapi/v0/status" + host + "Origin: https://example.com\r\n\r\n",
		"GET /localapi/v0/status" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	} {
		code, body, err := c.send(text)
		t.Logf("%.100q: %d %.200q, %v", text, code, body, err)
		if err != nil || code != http.StatusForbidden && code != http.StatusBadRequest && code != http.StatusHTTPVersionNotSupported {
			t.Errorf("%.100q: %d %q, %v", text, code, body, err)
		}
	}
	if code, body, err := c.send(get("/localapi/v0/status?peers=false")); code != http.StatusOK || err != nil {
		t.Errorf("the same in earnest: %d %q, %v", code, body, err)
	}
	if now := w.statusOf("uid-a"); now.State != Running || now.NodeID != node.NodeID {
		t.Errorf("the node was %+v, is %+v", node, now)
	}
}

// TestLocalAPIBounded: a pod that opens all it can and sends too much delays only its
// own answers, and costs this process no more than it may.
func TestLocalAPIBounded(t *testing.T) {
	w := newWorld(t)
	w.boot()
	hostile, _ := w.apiOf("a")
	other, _ := w.apiOf("b")
	before := runtime.NumGoroutine()
	var conns []net.Conn
	for range 200 {
		conn, err := hostile.dial()
		if err != nil {
			break // the kernel's queue is full
		}
		defer conn.Close()
		conns = append(conns, conn)
		io.WriteString(conn, "GET /localapi/v0/status HTTP/1.1\r\nHost: ")
	}
	if _, err := other.Status(t.Context()); err != nil {
		t.Errorf("the other pod: %v", err)
	}
	if more := runtime.NumGoroutine() - before; more > 4*apiConns {
		t.Errorf("%d goroutines more for 200 connections", more)
	}
	// A client that sends no request is disconnected.
	conns[0].SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadAll(conns[0]); err != nil {
		t.Errorf("the first connection: %v", err)
	}
	for _, conn := range conns {
		conn.Close()
	}
	if code, body, err := hostile.send(get("/localapi/v0/status?peers=false")); code != http.StatusOK {
		t.Errorf("afterwards: %d %q, %v", code, body, err)
	}
	large := strings.Replace(get("/localapi/v0/status"), "\r\n\r\n", "\r\nX: "+strings.Repeat("x", 64<<10)+"\r\n\r\n", 1)
	if code, _, err := other.send(large); err == nil && code != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("64 KiB of headers: %d", code)
	}
}

// TestLocalAPIRefusalsCost: refused requests are bounded like others.
func TestLocalAPIRefusalsCost(t *testing.T) {
	api := newLocalAPI(nil)
	begin := time.Now()
	for range apiBurst + apiRate {
		w := httptest.NewRecorder()
		api.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/localapi/v0/prefs", nil))
		if w.Code != http.StatusForbidden {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	}
	if took := time.Since(begin); took < 900*time.Millisecond {
		t.Errorf("%d refusals took %v", apiBurst+apiRate, took)
	}
}

// TestLocalAPIEnds with all that it has begun to answer.
func TestLocalAPIEnds(t *testing.T) {
	dir := t.TempDir()
	ln, err := listenLocalAPI(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{}
	api, client := newLocalAPI(n), newAPIClient(t, dir)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	n.serving.mu.Lock() // the answer has to wait
	go func() {
		api.serve(ctx, ln)
		close(ended)
	}()
	go client.send(get(pathStatus))
	for len(api.large) == 0 {
		tstime.Sleep(t.Context(), time.Millisecond)
	}
	stop()
	select {
	case <-ended:
		t.Error("it has ended before its answer")
	case <-time.After(100 * time.Millisecond):
	}
	n.serving.mu.Unlock()
	<-ended
	if _, err := client.dial(); err == nil {
		t.Error("it still listens")
	}
}

// TestLocalAPIRestart: the directory that the containers mount holds the next process's
// socket, and until then one that refuses.
func TestLocalAPIRestart(t *testing.T) {
	w := newWorld(t)
	w.boot()
	c, _ := w.apiOf("a")
	fi, err := os.Stat(filepath.Join(c.dir, socketFile))
	if err != nil || fi.Mode().Perm() != 0o666 {
		t.Errorf("the socket is %v, %v", fi, err)
	}
	mount, err := os.Stat(c.dir)
	if err != nil || mount.Mode().Perm() != 0o755 {
		t.Fatalf("the directory is %v, %v", mount, err)
	}
	w.halt()
	if _, err := c.dial(); err == nil {
		t.Error("somebody answers without a process")
	}
	w.boot()
	w.await("uid-a", Running)
	if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
	if now, err := os.Stat(c.dir); err != nil || !os.SameFile(mount, now) {
		t.Errorf("the directory is another one: %v", err)
	}
	if err := w.Forget(t.Context(), "sba"); err != nil {
		t.Fatal(err)
	}
	w.awaitForgotten("uid-a")
	if _, err := os.Stat(c.dir); err == nil {
		t.Error("the directory is left")
	}
}

// TestLocalAPIWithoutNode: while the node is not up, the answer says so.
func TestLocalAPIWithoutNode(t *testing.T) {
	w := newWorld(t)
	w.control.AddFault(control.Fault{Path: "/api/v2/oauth/token", Status: 401, Message: "API token invalid"})
	w.boot()
	_, pod := w.pod("a")
	pod.Features.Socket = true
	w.mustAttach(pod)
	dir, err := w.SocketDir(pod.UID)
	if err != nil {
		t.Fatal(err)
	}
	c := newAPIClient(t, dir)
	var said error
	w.until("the status says why", func() bool {
		_, said = c.Status(t.Context())
		return said != nil && strings.Contains(said.Error(), "the pod's node is not up: ") && strings.Contains(said.Error(), "OAuth client")
	}, func() string { return fmt.Sprint(said) })
	w.control.ClearFaults()
	w.await(pod.UID, Running)
	if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestNoLocalAPI: a pod that does not ask has no socket.
func TestNoLocalAPI(t *testing.T) {
	w := newWorld(t)
	w.boot()
	_, pod := w.pod("a")
	w.mustAttach(pod)
	w.await(pod.UID, Running)
	if _, err := os.Stat(filepath.Join(w.dir, pod.UID, socketDir)); err == nil {
		t.Error("there is a directory for a socket")
	}
	if _, err := w.SocketDir("uid-nobody"); err == nil {
		t.Error("a pod without a node has a directory")
	}
}

// TestStatusHidesLogin: with the address at which the control plane wants a login
// anybody could make the node their own.
func TestStatusHidesLogin(t *testing.T) {
	w := newWorld(t)
	w.boot()
	c, _ := w.apiOf("a")
	_, body, err := c.send(get("/localapi/v0/status"))
	if err != nil {
		t.Fatal(err)
	}
	var st ipnstate.Status
	if err := json.Unmarshal([]byte(body), &st); err != nil || st.AuthURL != "" {
		t.Errorf("AuthURL %q, %v", st.AuthURL, err)
	}
	if strings.Contains(body, "privkey") || strings.Contains(body, "tskey") {
		t.Errorf("keys in %s", body)
	}
}

// TestAwait: a caller that waits for a node is told when it is up, or why it is not.
func TestAwait(t *testing.T) {
	w := newWorld(t)
	w.boot()
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := w.Await(soon, "uid-a"); err == nil || !strings.Contains(err.Error(), "no node") {
		t.Errorf("without a pod: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- w.Await(t.Context(), "uid-a") }()
	_, pod := w.pod("a")
	w.mustAttach(pod)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if now := w.statusOf(pod.UID); now.State != Running {
		t.Errorf("the node is %s", now.State)
	}
}
