// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"sigs.k8s.io/yaml"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/buildinfo"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/podspec"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/status"
)

func testNodes() []engine.NodeStatus {
	now := time.Now()
	return []engine.NodeStatus{
		{SandboxID: "2", Namespace: "default", Pod: "web", Hostname: "k8s-default-web", State: "Running",
			Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd7a:115c:a1e0::1")},
			Since:     now.Add(-time.Minute), ReadyIn: 1234567 * time.Microsecond},
		{SandboxID: "1", Namespace: "default", Pod: "api", Hostname: "api", State: "Pending", Reason: "the OAuth secret was refused"},
	}
}

// fixedNodes are an engine's answer.
type fixedNodes []engine.NodeStatus

func (f fixedNodes) Status() []engine.NodeStatus { return f }

func (f fixedNodes) Details() (all []engine.Detail) {
	for _, n := range f {
		all = append(all, engine.Detail{NodeStatus: n})
	}
	return all
}

// startStatus serves nodes on a socket until the test ends.
func startStatus(t *testing.T, nodes []engine.NodeStatus) (socket string) {
	t.Helper()
	h := &health{}
	h.serves(fixedNodes(nodes))
	h.connect()(nil)
	return serveSocket(t, h)
}

// serveSocket serves what h says on a socket until the test ends.
func serveSocket(t *testing.T, h *health) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "run", "status.sock")
	ln, err := listenStatus(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &statusServer{health: h, host: "n1", ln: ln}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := plugintest.Receive(t, done, "the end of Run"); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(socket); !os.IsNotExist(err) {
			t.Errorf("the socket is left: %v", err)
		}
	})
	return socket
}

// showing runs the command, and returns what it has printed.
func showing(t *testing.T, socket string, args ...string) (string, error) {
	t.Helper()
	var out strings.Builder
	err := run(t.Context(), plugintest.Environment(nil), append([]string{"status", "-status-socket", socket}, args...), &out, nil)
	return out.String(), err
}

// TestStatusFormats: what is asked for is what is printed, and the error says what
// the command ends with.
func TestStatusFormats(t *testing.T) {
	socket := startStatus(t, testNodes())
	for _, args := range [][]string{nil, {"-o", "table"}, {"-o=wide"}} {
		out, err := showing(t, socket, args...)
		lines := strings.Split(out, "\n")
		if !errors.Is(err, errNotRunning) || len(lines) < 3 || strings.Contains(lines[0], "TAGS") != slices.Contains(args, "-o=wide") ||
			!strings.HasPrefix(lines[1], "default/api ") || !strings.HasSuffix(lines[1], " the OAuth secret was refused") ||
			!strings.Contains(lines[2], " 100.64.0.1,fd7a:115c:a1e0::1 ") {
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
	for _, tt := range []struct {
		args, older []string
		unmarshal   func([]byte, any) error
	}{
		{[]string{"-o", "json"}, []string{"-json"}, json.Unmarshal},
		{[]string{"-o", "yaml"}, []string{"-yaml"}, func(b []byte, v any) error { return yaml.UnmarshalStrict(b, v) }},
	} {
		out, err := showing(t, socket, tt.args...)
		var got status.Report
		if uerr := tt.unmarshal([]byte(out), &got); uerr != nil || !errors.Is(err, errNotRunning) {
			t.Fatalf("%s: %v, %v", tt.args, err, uerr)
		}
		if len(got.Nodes) != 2 || got.Nodes[1].Pod != "web" || got.Nodes[1].Addresses[1] != testNodes()[0].Addresses[1] ||
			got.Nodes[0].Reason == "" || !got.Ready || got.Message != "" || got.Host != "n1" || got.Version != buildinfo.Version() {
			t.Errorf("%s: got %+v", tt.args, got)
		}
		if older, _ := showing(t, socket, tt.older...); older != out {
			t.Errorf("%s prints\n%s, and %s\n%s", tt.older, older, tt.args, out)
		}
	}
}

// TestStatusOfPods: some pods are asked for, and what the command ends with is theirs.
func TestStatusOfPods(t *testing.T) {
	nodes := testNodes()
	nodes[1].Namespace = "team"
	socket := startStatus(t, nodes)
	out, err := showing(t, socket, "web")
	if err != nil || strings.Contains(out, "team/api") || !strings.Contains(out, "default/web") {
		t.Errorf("web: %v\n%s", err, out)
	}
	out, err = showing(t, socket, "team/api", "-o", "wide", "default/web")
	if !errors.Is(err, errNotRunning) || !strings.Contains(out, "team/api") || !strings.Contains(out, "default/web") {
		t.Errorf("both: %v\n%s", err, out)
	}
	_, err = showing(t, socket, "web", "api")
	if !plugintest.ErrContains(err, "default/api") || !plugintest.ErrContains(err, "not on host n1") || errors.As(err, new(cannotAsk)) {
		t.Errorf("one that is elsewhere: %v", err)
	}
}

// TestStatusSaysTheHost: what is wrong with the host, and pods without a node, are in
// the same answer.
func TestStatusSaysTheHost(t *testing.T) {
	h := &health{}
	socket := serveSocket(t, h)
	out, err := showing(t, socket)
	if !errors.Is(err, errNotRunning) || !strings.HasSuffix(out, "\nnot ready: starting\n") {
		t.Errorf("%v\n%s", err, out)
	}
	h.serves(fixedNodes(nil))
	h.connect()(nil)
	h.note("TS_TAGS has changed to what cannot be used")
	if out, err = showing(t, socket); err != nil || !strings.HasSuffix(out, "\nTS_TAGS has changed to what cannot be used\n") {
		t.Errorf("%v\n%s", err, out)
	}
	refused := &refusals{}
	refused.note(plugintest.Sandbox("old", podspec.AnnotationEnabled, "true"), errors.New("bad tag"), true)
	h.warns(refused.nodes)
	out, err = showing(t, socket, "old")
	if !errors.Is(err, errNotRunning) || !strings.Contains(out, "NoNode") || !strings.Contains(out, "runs without a tailnet node: bad tag\n") {
		t.Errorf("%v\n%s", err, out)
	}
}

// stuckPods hang: its details, or all of it.
type stuckPods struct {
	fixedNodes
	wholly bool
	asked  chan struct{}
	free   chan struct{}
}

func (p stuckPods) Details() []engine.Detail {
	p.asked <- struct{}{}
	<-p.free
	return p.fixedNodes.Details()
}

func (p stuckPods) Status() []engine.NodeStatus {
	if p.wholly {
		p.asked <- struct{}{}
		<-p.free
	}
	return p.fixedNodes
}

// TestStatusOfAHangingEngine: the status says what can be said, and asks once.
func TestStatusOfAHangingEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &health{}
		pods := stuckPods{testNodes(), false, make(chan struct{}, 10), make(chan struct{})}
		h.serves(pods)
		h.connect()(nil)
		s := &statusServer{health: h}
		for range 2 {
			start := time.Now()
			r := s.report(t.Context())
			if took := time.Since(start); took != detailsPatience || len(r.Nodes) != 2 || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "has not said all") {
				t.Errorf("after %v: %+v", took, r)
			}
		}
		if n := len(pods.asked); n != 1 {
			t.Errorf("asked %d times", n)
		}
		close(pods.free)
		synctest.Wait()
		if r := s.report(t.Context()); len(r.Warnings) != 0 || len(r.Nodes) != 2 || len(pods.asked) != 2 {
			t.Errorf("later: %+v", r)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		h := &health{}
		pods := stuckPods{testNodes(), true, make(chan struct{}, 10), make(chan struct{})}
		h.serves(pods)
		h.connect()(nil)
		s := &statusServer{health: h}
		for range 2 {
			start := time.Now()
			r := s.report(t.Context())
			if took := time.Since(start); took >= statusPatience || r.Ready || r.Role != status.Serving || !strings.Contains(r.Message, "has not answered") || r.Nodes == nil || status.ExitCode([]status.Report{r}) != status.ExitTrouble {
				t.Errorf("after %v: %+v", took, r)
			}
		}
		if n := len(pods.asked); n != 2 { // for its details, and for its nodes
			t.Errorf("asked %d times", n)
		}
		close(pods.free)
		synctest.Wait()
		if r := s.report(t.Context()); !r.Ready || len(r.Nodes) != 2 {
			t.Errorf("later: %+v", r)
		}
	})
}

// TestStatusOfAHangingNode is named, and hides nothing of the others.
func TestStatusOfAHangingNode(t *testing.T) {
	h := &health{}
	h.serves(detailed{{NodeStatus: testNodes()[0]}, {NodeStatus: testNodes()[1], Unanswered: true}})
	h.connect()(nil)
	r := (&statusServer{health: h}).report(t.Context())
	if len(r.Nodes) != 2 || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "default/api") || strings.Contains(r.Warnings[0], "default/web") {
		t.Errorf("got %+v", r)
	}
}

// detailed is an engine's answer.
type detailed []engine.Detail

func (d detailed) Status() []engine.NodeStatus { return nil }
func (d detailed) Details() []engine.Detail    { return d }

// TestStatusRole: who has the nodes is told from who waits, ready or not.
func TestStatusRole(t *testing.T) {
	h := &health{}
	s := &statusServer{health: h}
	expect := func(what, role string, ready bool) {
		t.Helper()
		if r := s.report(t.Context()); r.Role != role || r.Ready != ready {
			t.Errorf("%s: %+v, want role %q, ready %v", what, r, role, ready)
		}
	}
	expect("starting", "", false)
	h.become(misconfigured, "TS_TAGS is missing")
	expect("misconfigured", "", false)
	lacks := ""
	h.standBy(func() string { return lacks })
	expect("standing by", status.Standby, true)
	lacks = "no runtime"
	expect("standing by in vain", status.Standby, false)
	h.serves(fixedNodes(nil))
	expect("taking over", status.Serving, false)
	h.connect()(nil)
	expect("serving", status.Serving, true)
	h.disconnected(errClosed, "the runtime is away")
	expect("cut off", status.Serving, false)
}

// answering is a process that answers on a socket.
func answering(t *testing.T, answer http.HandlerFunc) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "status.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: answer}
	t.Cleanup(func() { srv.Close() })
	go func() { _ = srv.Serve(ln) }()
	return socket
}

// TestStatusOfOtherVersions: a process that has another form of answer, or none, is
// named; and one of this version answers an earlier command.
func TestStatusOfOtherVersions(t *testing.T) {
	for answer, want := range map[string]string{
		"": "is of an earlier version than this command",
		`{"apiVersion":"tailscale-nri/v2","nodes":{}}`: `apiVersion "tailscale-nri/v2"`,
		`{"apiVersion":"tailscale-nri/v2"}`:            `apiVersion "tailscale-nri/v2", and this command reads tailscale-nri/v1`,
	} {
		socket := answering(t, func(w http.ResponseWriter, r *http.Request) {
			if answer == "" || r.URL.Path != "/v1/status" {
				http.NotFound(w, r)
				return
			}
			io.WriteString(w, answer)
		})
		if _, err := showing(t, socket); !plugintest.ErrContains(err, want) || !errors.As(err, new(cannotAsk)) {
			t.Errorf("%q: got %v, want %q", answer, err, want)
		}
	}
	socket := startStatus(t, testNodes())
	_, body, err := fetch(t.Context(), socket, "status")
	var nodes []engine.NodeStatus
	if err := errors.Join(err, json.Unmarshal(body, &nodes)); err != nil || len(nodes) != 2 || nodes[0].Pod != "web" {
		t.Errorf("an earlier command gets %s, %v", body, err)
	}
	if code, body, err := fetch(t.Context(), socket, "warnings"); err != nil || code != http.StatusOK || len(body) != 0 {
		t.Errorf("an earlier command gets warnings %d %s, %v", code, body, err)
	}
}

// TestStatusWatch: one table for each change, and none for what only counts on; a
// process that goes away is shown, and that it comes back.
func TestStatusWatch(t *testing.T) {
	var mu sync.Mutex
	r := status.Report{APIVersion: status.APIVersion, Ready: true, Nodes: []status.Node{{Namespace: "a", Pod: "b", State: status.Pending}}}
	asked := make(chan struct{})
	socket := answering(t, func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if !r.Ready {
			http.NotFound(w, nil)
		} else {
			answerJSON(w, r)
		}
		select {
		case asked <- struct{}{}:
		default:
		}
	})
	out := plugintest.NewLogBook()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	s := statusWatch{socket: socket, every: time.Millisecond, w: out}
	go func() { ended <- s.run(ctx) }()
	change := func(f func()) {
		for range 2 { // one that may have been under way, and one after it
			plugintest.Receive(t, asked, "a question")
		}
		mu.Lock()
		defer mu.Unlock()
		f()
	}
	out.Wait(t, "Pending", 1)
	change(func() { r.Nodes[0].BytesIn = 10 })
	change(func() { r.Nodes[0].State = status.Running })
	out.Wait(t, "Running", 1)
	change(func() { r.Ready = false })
	out.Wait(t, "earlier version", 1)
	change(func() { r.Ready = true })
	change(func() {})
	stop()
	if err := plugintest.Receive(t, ended, "the end"); err != nil {
		t.Errorf("it ended with %v", err)
	}
	if n, tables := strings.Count(out.String(), "POD"), strings.Split(out.String(), "\n\nPOD"); n != 4 || len(tables) != 4 {
		t.Errorf("%d tables, %d of them apart:\n%s", n, len(tables), out)
	}

	gone := statusWatch{socket: socket + "x", every: time.Millisecond, w: out}
	if err := gone.run(t.Context()); !errors.As(err, new(cannotAsk)) {
		t.Errorf("watching nobody: %v", err)
	}
	var screen strings.Builder
	s = statusWatch{w: &screen, redraw: true}
	for range 2 {
		if err := s.show([]status.Report{r}, []status.Report{r}); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Count(screen.String(), "\x1b[2J\x1b[HPOD") != 2 {
		t.Errorf("the screen has %q", screen.String())
	}
}

// TestStatusEnds: the program's exit code, and SIGINT while it watches.
func TestStatusEnds(t *testing.T) {
	good, bad := startStatus(t, testNodes()[:1]), startStatus(t, testNodes())
	for _, tt := range []struct {
		code int
		args []string
	}{
		{0, []string{"-status-socket", good}},
		{1, []string{"-status-socket", bad}},
		{0, []string{"-status-socket", bad, "web"}},
		{1, []string{"-status-socket", good, "nobody"}},
		{2, []string{"-status-socket", good + "x"}},
		{2, []string{"-status-socket", good, "-o", "xml"}},
		{2, []string{"-status-socket", good, "-bogus"}},
	} {
		cmd := process(t)
		cmd.Args = append(cmd.Args, append([]string{"status"}, tt.args...)...)
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != tt.code {
			t.Errorf("%q ends with %d, want %d: %s", tt.args, got, tt.code, out)
		}
	}
	cmd := process(t)
	cmd.Args = append(cmd.Args, "status", "-watch", "-status-socket", bad)
	out := plugintest.NewLogBook()
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out.Wait(t, "default/api", 1)
	if err := errors.Join(cmd.Process.Signal(syscall.SIGINT), cmd.Wait()); err != nil {
		t.Errorf("it ended with %v", err)
	}
}

func TestStatusOfNobody(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "status.sock")
	err := showStatus(context.Background(), socket, command{}, nil)
	if !errors.As(err, new(cannotAsk)) || !plugintest.ErrContains(err, "no process answers on "+socket) || !strings.Contains(err.Error(), settings.StatusSocket) {
		t.Errorf("got %v", err)
	}
}

func TestStatusSocket(t *testing.T) {
	socket := startStatus(t, nil)
	fi, err := os.Stat(socket)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	file := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(file, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenStatus(t.Context(), file); !plugintest.ErrContains(err, "no socket") {
		t.Errorf("a file: %v", err)
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "data" {
		t.Errorf("the file is %q now (%v)", data, err)
	}
	if _, err := listenStatus(t.Context(), socket); !plugintest.ErrContains(err, "another tailscale-nri answers") {
		t.Errorf("a second process got %v", err)
	}

	stale := filepath.Join(t.TempDir(), "status.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	again, err := listenStatus(t.Context(), stale)
	if err != nil {
		t.Fatalf("a socket left behind: %v", err)
	}
	again.Close()
}

// TestStatusSocketOfTheDying: a process that was killed still takes a
// connection, and answers none.
func TestStatusSocketOfTheDying(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "status.sock")
	dying, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dying.SetUnlinkOnClose(false)
	asked := make(chan error, 1)
	go func() {
		conn, err := dying.Accept()
		dying.Close()
		if err == nil {
			err = conn.Close()
		}
		asked <- err
	}()
	ln, err := listenStatus(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := plugintest.Receive(t, asked, "the question"); err != nil {
		t.Error(err)
	}
}
