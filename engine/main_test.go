// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"tailscale-nri/engine/internal/nstest"
	"tailscale-nri/engine/internal/podstate"
	"tailscale-nri/engine/tailnet"
	"tailscale-nri/k3d/lab/control"
)

func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		os.Exit(runVictim())
	}
	if checkFeatures() != nil {
		fmt.Fprintln(os.Stderr, "these tests need the program's build tags: run make unit PKG=./engine RUN=TestName")
		os.Exit(1)
	}
	os.Exit(nstest.Main(m))
}

// world is a tailnet and a host with an engine.
type world struct {
	t       *testing.T
	control *control.Server
	tailnet tailnet.Tailnet
	dir     string

	*Engine
	stop context.CancelFunc
	done chan error
}

func newWorld(t *testing.T, change ...func(*control.Config)) *world {
	t.Helper()
	cfg := control.Config{Addr: nstest.HostAddr, Logger: testLogger(t, "control")}
	for _, f := range change {
		f(&cfg)
	}
	srv, err := control.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	access, err := tailnet.NewOAuth(tailnet.OAuthConfig{
		ClientID: "lab-client", ClientSecret: "lab-secret",
		BaseURL: srv.APIURL(), ControlURL: srv.ControlURL(), Logger: testLogger(t, "tailnet"),
	})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, control: srv, tailnet: access, dir: t.TempDir()}
	t.Cleanup(func() { w.halt() })
	return w
}

// devices is what the tailnet's API can do.
func (w *world) devices() tailnet.DeviceAPI { return w.tailnet.(tailnet.DeviceAPI) }

// boot starts an engine on what the last one left.
func (w *world) boot(change ...func(*Config)) {
	w.t.Helper()
	cfg := Config{
		StateDir: w.dir, Tailnet: w.tailnet, Logger: testLogger(w.t, "engine"),
		AttachTimeout: 20 * time.Second, Grace: 2 * time.Second,
		copySettled: time.Second, copyPause: 100 * time.Millisecond,
	}
	for _, f := range change {
		f(&cfg)
	}
	e, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	w.Engine, w.stop, w.done = e, stop, make(chan error, 1)
	go func() { w.done <- e.Run(ctx) }()
}

// halt ends the engine as SIGTERM does.
func (w *world) halt() {
	if w.Engine == nil {
		return
	}
	w.stop()
	if err := <-w.done; err != nil {
		w.t.Errorf("Run = %v", err)
	}
	w.Engine = nil
}

// entries are what the state directory has of pods.
func (w *world) entries() (names []string) {
	w.t.Helper()
	all, err := os.ReadDir(w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range all {
		if !strings.HasPrefix(e.Name(), podstate.ServedFile) {
			names = append(names, e.Name())
		}
	}
	return names
}

// testLogger writes to the test's log; TSNRI_TEST_TRACE=1 adds what
// tailscale.com says.
func testLogger(t *testing.T, who string) *slog.Logger {
	level := slog.LevelInfo
	if os.Getenv("TSNRI_TEST_TRACE") != "" {
		level = LevelTrace
	}
	return slog.New(slog.NewTextHandler(&testWriter{t: t}, &slog.HandlerOptions{Level: level})).With("who", who)
}

type testWriter struct{ t *testing.T }

func (w *testWriter) Write(b []byte) (int, error) {
	defer func() { recover() }() // a line that comes after the test's end
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// pod returns a new pod and its values.
func (w *world) pod(name string) (*nstest.Pod, Pod) {
	p := nstest.NewPod(w.t)
	return p, Pod{
		SandboxID: "sb" + name, UID: "uid-" + name, Namespace: "default", Name: name,
		NetNS: p.Path(), Hostname: "k8s-default-" + name, Tags: []string{"tag:k8s-pod"},
	}
}

// mustAttach attaches the pod.
func (w *world) mustAttach(pod Pod) {
	w.t.Helper()
	if _, err := w.Attach(context.Background(), pod); err != nil {
		w.t.Fatal(err)
	}
}

// await waits until the pod's node is in the state, and returns it.
func (w *world) await(uid string, want State) NodeStatus {
	w.t.Helper()
	var last NodeStatus
	w.until(fmt.Sprintf("%s is %s", uid, want), func() bool {
		for _, s := range w.Status() {
			if s.UID == uid {
				last = s
				return s.State == want
			}
		}
		return false
	}, func() string { return fmt.Sprintf("%+v", last) })
	return last
}

// until waits for a condition.
func (w *world) until(what string, ok func() bool, detail func() string) {
	w.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("not seen within half a minute: %s; last: %s", what, detail())
		}
	}
}

// serveEcho answers on TCP port 7 of every address of the pod with the
// caller's address.
func serveEcho(t *testing.T, p *nstest.Pod) {
	t.Helper()
	var ln net.Listener
	p.Do(func() (err error) {
		ln, err = net.Listen("tcp", ":7")
		return err
	})
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
			c.Close()
		}
	}()
}

// callerSeen returns the address under which from is seen at to.
func callerSeen(from *nstest.Pod, to netip.Addr) (seen string, err error) {
	var c net.Conn
	from.Do(func() error {
		c, err = net.DialTimeout("tcp", netip.AddrPortFrom(to, 7).String(), 10*time.Second)
		return nil
	})
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}
