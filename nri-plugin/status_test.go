// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"sigs.k8s.io/yaml"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/buildinfo"
	"tailscale-nri/nri-plugin/internal/nri"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/podspec"
	"tailscale-nri/nri-plugin/internal/status"
	"tailscale-nri/nri-plugin/internal/statussocket"
	"tailscale-nri/nri-plugin/internal/statustest"
)

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
	socket := statustest.Start(t, plugintest.TwoNodes())
	for _, args := range [][]string{nil, {"-o", "table"}, {"-o=wide"}} {
		out, err := showing(t, socket, args...)
		lines := strings.Split(out, "\n")
		if !errors.Is(err, statussocket.ErrNotRunning) || len(lines) < 3 || strings.Contains(lines[0], "TAGS") != slices.Contains(args, "-o=wide") ||
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
		if uerr := tt.unmarshal([]byte(out), &got); uerr != nil || !errors.Is(err, statussocket.ErrNotRunning) {
			t.Fatalf("%s: %v, %v", tt.args, err, uerr)
		}
		if len(got.Nodes) != 2 || got.Nodes[1].Pod != "web" || got.Nodes[1].Addresses[1] != plugintest.TwoNodes()[0].Addresses[1] ||
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
	nodes := plugintest.TwoNodes()
	nodes[1].Namespace = "team"
	socket := statustest.Start(t, nodes)
	out, err := showing(t, socket, "web")
	if err != nil || strings.Contains(out, "team/api") || !strings.Contains(out, "default/web") {
		t.Errorf("web: %v\n%s", err, out)
	}
	out, err = showing(t, socket, "team/api", "-o", "wide", "default/web")
	if !errors.Is(err, statussocket.ErrNotRunning) || !strings.Contains(out, "team/api") || !strings.Contains(out, "default/web") {
		t.Errorf("both: %v\n%s", err, out)
	}
	_, err = showing(t, socket, "web", "api")
	if !plugintest.ErrContains(err, "default/api") || !plugintest.ErrContains(err, "not on host n1") || errors.As(err, new(statussocket.CannotAsk)) {
		t.Errorf("one that is elsewhere: %v", err)
	}
}

// TestStatusSaysTheHost: what is wrong with the host, and pods without a node, are in
// the same answer.
func TestStatusSaysTheHost(t *testing.T) {
	h := &statussocket.Health{}
	socket := statustest.Serve(t, h)
	out, err := showing(t, socket)
	if !errors.Is(err, statussocket.ErrNotRunning) || !strings.HasSuffix(out, "\nnot ready: starting\n") {
		t.Errorf("%v\n%s", err, out)
	}
	h.Serves(plugintest.FixedNodes(nil))
	h.Connect()(nil)
	h.Note("TS_TAGS has changed to what cannot be used")
	if out, err = showing(t, socket); err != nil || !strings.HasSuffix(out, "\nTS_TAGS has changed to what cannot be used\n") {
		t.Errorf("%v\n%s", err, out)
	}
	refused := &nri.Refusals{}
	refused.Note(plugintest.Sandbox("old", podspec.AnnotationEnabled, "true"), errors.New("bad tag"), true)
	h.Warns(refused.Nodes)
	out, err = showing(t, socket, "old")
	if !errors.Is(err, statussocket.ErrNotRunning) || !strings.Contains(out, "NoNode") || !strings.Contains(out, "runs without a tailnet node: bad tag\n") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestStatusOfOtherVersions: a process that has another form of answer, or none, is
// named; and one of this version answers an earlier command.
func TestStatusOfOtherVersions(t *testing.T) {
	for answer, want := range map[string]string{
		"": "is older than this command",
		`{"apiVersion":"tailscale-nri/v2","nodes":{}}`: `apiVersion "tailscale-nri/v2"`,
		`{"apiVersion":"tailscale-nri/v2"}`:            `apiVersion "tailscale-nri/v2", and this command reads tailscale-nri/v1`,
	} {
		socket := plugintest.AnswerStatus(t, func(w http.ResponseWriter, r *http.Request) {
			if answer == "" || r.URL.Path != "/v1/status" {
				http.NotFound(w, r)
				return
			}
			io.WriteString(w, answer)
		})
		if _, err := showing(t, socket); !plugintest.ErrContains(err, want) || !errors.As(err, new(statussocket.CannotAsk)) {
			t.Errorf("%q: got %v, want %q", answer, err, want)
		}
	}
	socket := statustest.Start(t, plugintest.TwoNodes())
	_, body, err := statussocket.Fetch(t.Context(), socket, "status")
	var nodes []engine.NodeStatus
	if err := errors.Join(err, json.Unmarshal(body, &nodes)); err != nil || len(nodes) != 2 || nodes[0].Pod != "web" {
		t.Errorf("an earlier command gets %s, %v", body, err)
	}
	if code, body, err := statussocket.Fetch(t.Context(), socket, "warnings"); err != nil || code != http.StatusOK || len(body) != 0 {
		t.Errorf("an earlier command gets warnings %d %s, %v", code, body, err)
	}
}

// TestStatusEnds: the program's exit code, and SIGINT while it watches.
func TestStatusEnds(t *testing.T) {
	good, bad := statustest.Start(t, plugintest.TwoNodes()[:1]), statustest.Start(t, plugintest.TwoNodes())
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

func TestStatusSocket(t *testing.T) {
	socket := statustest.Start(t, nil)
	fi, err := os.Stat(socket)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	file := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(file, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := statussocket.Listen(t.Context(), file); !plugintest.ErrContains(err, "not a socket") {
		t.Errorf("a file: %v", err)
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "data" {
		t.Errorf("the file is %q now (%v)", data, err)
	}
	if _, err := statussocket.Listen(t.Context(), socket); !plugintest.ErrContains(err, "another tailscale-nri answers") {
		t.Errorf("a second process got %v", err)
	}

	stale := filepath.Join(t.TempDir(), "status.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	again, err := statussocket.Listen(t.Context(), stale)
	if err != nil {
		t.Fatalf("a socket left behind: %v", err)
	}
	again.Close()
}
