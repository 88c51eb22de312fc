// SPDX-License-Identifier: BSD-3-Clause

package statussocket

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/status"
)

// stuckPods hang: its details, or all of it.
type stuckPods struct {
	plugintest.FixedNodes
	wholly bool
	asked  chan struct{}
	free   chan struct{}
}

func (p stuckPods) Details() []engine.Detail {
	p.asked <- struct{}{}
	<-p.free
	return p.FixedNodes.Details()
}

func (p stuckPods) Status() []engine.NodeStatus {
	if p.wholly {
		p.asked <- struct{}{}
		<-p.free
	}
	return p.FixedNodes
}

// TestStatusOfAHangingEngine: the status says what can be said, and asks once.
func TestStatusOfAHangingEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &Health{}
		pods := stuckPods{plugintest.TwoNodes(), false, make(chan struct{}, 10), make(chan struct{})}
		h.Serves(pods)
		h.Connect()(nil)
		s := &Server{Health: h}
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
		h := &Health{}
		pods := stuckPods{plugintest.TwoNodes(), true, make(chan struct{}, 10), make(chan struct{})}
		h.Serves(pods)
		h.Connect()(nil)
		s := &Server{Health: h}
		for range 2 {
			start := time.Now()
			r := s.report(t.Context())
			if took := time.Since(start); took >= patience || r.Ready || r.Role != status.Serving || !strings.Contains(r.Message, "has not answered") || r.Nodes == nil || status.ExitCode([]status.Report{r}) != status.ExitTrouble {
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
	h := &Health{}
	h.Serves(detailed{{NodeStatus: plugintest.TwoNodes()[0]}, {NodeStatus: plugintest.TwoNodes()[1], Unanswered: true}})
	h.Connect()(nil)
	r := (&Server{Health: h}).report(t.Context())
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
	h := &Health{}
	s := &Server{Health: h}
	expect := func(what, role string, ready bool) {
		t.Helper()
		if r := s.report(t.Context()); r.Role != role || r.Ready != ready {
			t.Errorf("%s: %+v, want role %q, ready %v", what, r, role, ready)
		}
	}
	expect("starting", "", false)
	h.Become(Misconfigured, "TS_TAGS is missing")
	expect("misconfigured", "", false)
	lacks := ""
	h.StandBy(func() string { return lacks })
	expect("standing by", status.Standby, true)
	lacks = "no runtime"
	expect("standing by in vain", status.Standby, false)
	h.Serves(plugintest.FixedNodes(nil))
	expect("taking over", status.Serving, false)
	h.Connect()(nil)
	expect("serving", status.Serving, true)
	h.Disconnected("the runtime is away", true)
	expect("cut off", status.Serving, false)
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
	ln, err := Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := plugintest.Receive(t, asked, "the question"); err != nil {
		t.Error(err)
	}
}
