// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"tailscale-nri/engine"
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

// startStatus serves nodes on a socket until the test ends.
func startStatus(t *testing.T, nodes []engine.NodeStatus) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "run", "status.sock")
	ln, err := listenStatus(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	h := &health{}
	h.serves(func() []engine.NodeStatus { return nodes })
	h.connect()(nil)
	s := &statusServer{health: h, ln: ln}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := receive(t, done, "the end of Run"); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(socket); !os.IsNotExist(err) {
			t.Errorf("the socket is left: %v", err)
		}
	})
	return socket
}

func TestStatusTable(t *testing.T) {
	socket := startStatus(t, testNodes())
	var out strings.Builder
	if err := run(context.Background(), environment(nil), []string{"status", "-status-socket", socket}, &out, nil); err != nil {
		t.Fatal(err)
	}
	want := [][]string{
		{"POD", "NAME", "STATE", "SINCE", "READY", "IN", "ADDRESSES", "REASON"},
		{"default/api", "api", "Pending", "-", "-", "-", "the", "OAuth", "secret", "was", "refused"},
		{"default/web", "k8s-default-web", "Running", "", "1.235s", "100.64.0.1,fd7a:115c:a1e0::1", "-"},
	}
	for i, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
		got := strings.Fields(line)
		if i == 2 && len(got) > 3 {
			if !strings.HasPrefix(got[3], "1m") {
				t.Errorf("since %s", got[3])
			}
			got[3] = ""
		}
		if i >= len(want) || !reflect.DeepEqual(got, want[i]) {
			t.Errorf("line %d is %q", i, line)
		}
	}
}

func TestStatusForMachines(t *testing.T) {
	socket := startStatus(t, testNodes())
	env := environment(map[string]string{envStatusSocket: socket})
	for flag, unmarshal := range map[string]func(string, any) error{
		"-json": func(s string, v any) error { return json.Unmarshal([]byte(s), v) },
		"-yaml": func(s string, v any) error { return yaml.UnmarshalStrict([]byte(s), v) },
	} {
		var out strings.Builder
		if err := run(context.Background(), env, []string{"status", flag}, &out, nil); err != nil {
			t.Fatal(err)
		}
		var got []engine.NodeStatus
		if err := unmarshal(out.String(), &got); err != nil {
			t.Fatalf("%s: %v", flag, err)
		}
		if len(got) != 2 || got[0].Pod != "web" || got[0].Addresses[1] != testNodes()[0].Addresses[1] || got[1].Reason == "" {
			t.Errorf("%s: got %+v", flag, got)
		}
	}
}

func TestStatusOfNobody(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "status.sock")
	err := showStatus(context.Background(), socket, command{}, nil)
	if !errContains(err, "no process answers on "+socket) || !strings.Contains(err.Error(), envStatusSocket) {
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
	if _, err := listenStatus(t.Context(), file); !errContains(err, "no socket") {
		t.Errorf("a file: %v", err)
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "data" {
		t.Errorf("the file is %q now (%v)", data, err)
	}
	if _, err := listenStatus(t.Context(), socket); !errContains(err, "another tailscale-nri answers") {
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
	if err := receive(t, asked, "the question"); err != nil {
		t.Error(err)
	}
}
