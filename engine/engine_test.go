// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tailscale.com/tstime"

	"tailscale-nri/engine/internal/nstest"
	"tailscale-nri/engine/internal/podnet"
	"tailscale-nri/engine/internal/podstate"
	"tailscale-nri/engine/tailnet"
	"tailscale-nri/k3d/lab/control"
)

// Two pods of one host talk over the tailnet at the same time, each under
// its own address.
func TestTwoPods(t *testing.T) {
	w := newWorld(t)
	w.boot()
	a, podA := w.pod("a")
	b, podB := w.pod("b")
	serveEcho(t, a)
	serveEcho(t, b)
	w.mustAttach(podA)
	w.mustAttach(podB)
	nodeA, nodeB := w.await(podA.UID, Running), w.await(podB.UID, Running)
	t.Logf("ready in %v and %v", nodeA.ReadyIn, nodeB.ReadyIn)
	// If both began the first handshake at the same instant, each would
	// overwrite the other's (WireGuard), and both would wait five seconds.
	expectCaller(t, a, nodeB.Addresses[0], nodeA.Addresses[0])
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() { expectCaller(t, a, nodeB.Addresses[i], nodeA.Addresses[i]) })
		wg.Go(func() { expectCaller(t, b, nodeA.Addresses[i], nodeB.Addresses[i]) })
	}
	wg.Wait()
	for _, d := range w.control.Devices() {
		if len(d.Tags) != 1 || d.Tags[0] != "tag:k8s-pod" || d.Ephemeral {
			t.Errorf("device %s: tags %v, ephemeral %v", d.Name, d.Tags, d.Ephemeral)
		}
	}
	if entries := w.entries(); len(entries) != 2 {
		t.Errorf("state directory: %q, want one entry a pod", entries)
	}
	assertPrivate(t, w.dir)
}

func expectCaller(t *testing.T, from *nstest.Pod, to, want netip.Addr) {
	t.Helper()
	if seen, err := callerSeen(from, to); err != nil || seen != want.String() {
		t.Errorf("%v is called by %q (%v), want %v", to, seen, err, want)
	}
}

// assertPrivate checks that nobody but the owner reads what is below dir.
func assertPrivate(t *testing.T, dir string) {
	t.Helper()
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && path != dir && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// Attaching twice makes one node. A peer's first packet after Running is
// answered at once.
func TestAttachIsIdempotent(t *testing.T) {
	w := newWorld(t)
	w.boot()
	p, pod := w.pod("a")
	for range 3 {
		w.mustAttach(pod)
	}
	w.await(pod.UID, Running)
	w.mustAttach(pod)
	if n := w.control.Counters().KeysMinted; n != 1 {
		t.Errorf("%d keys were minted, want 1", n)
	}
	addrs, err := addresses(p)
	if err != nil || len(addrs) != 2 {
		t.Errorf("ts0 has %v (%v), want two addresses", addrs, err)
	}
}

func addresses(p *nstest.Pod) (out []string, err error) {
	p.Do(func() error {
		var ifc *net.Interface
		var addrs []net.Addr
		if ifc, err = net.InterfaceByName(podnet.PodLink); err == nil {
			addrs, err = ifc.Addrs()
		}
		for _, a := range addrs {
			out = append(out, a.String())
		}
		return nil
	})
	return out, err
}

// A restart of this process must not be seen from within a pod: its addresses
// stay, its connections too, and nothing new appears in the tailnet.
func TestRestart(t *testing.T) {
	w := newWorld(t)
	w.boot()
	a, podA := w.pod("a")
	b, podB := w.pod("b")
	w.mustAttach(podA)
	w.mustAttach(podB)
	before, nodeB := w.await(podA.UID, Running), w.await(podB.UID, Running)
	conn := dialEcho(t, a, b, nodeB.Addresses[0])

	w.halt()
	if addrs, err := addresses(a); err != nil || len(addrs) != 2 {
		t.Errorf("while the engine is away ts0 has %v (%v), want two addresses", addrs, err)
	}
	w.boot()
	w.await(podB.UID, Running)
	after := w.await(podA.UID, Running)
	if after.NodeID != before.NodeID || after.Addresses[0] != before.Addresses[0] {
		t.Errorf("after the restart %s %v, before %s %v", after.NodeID, after.Addresses, before.NodeID, before.Addresses)
	}
	if n := w.control.Counters().KeysMinted; n != 2 {
		t.Errorf("%d keys were minted for two pods", n)
	}
	start := time.Now()
	if err := exchange(conn, "after"); err != nil {
		t.Errorf("the connection did not survive: %v", err)
	}
	t.Logf("the connection went on %v after both nodes were up again", time.Since(start))
}

// dialEcho opens a connection from a to an echo server in b.
func dialEcho(t *testing.T, a, b *nstest.Pod, addr netip.Addr) net.Conn {
	t.Helper()
	var ln net.Listener
	b.Do(func() (err error) {
		ln, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	t.Cleanup(func() { ln.Close() })
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 100)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			c.Write(buf[:n])
		}
	}()
	var c net.Conn
	a.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", ln.Addr().String(), 10*time.Second)
		return err
	})
	t.Cleanup(func() { c.Close() })
	if err := exchange(c, "before"); err != nil {
		t.Fatal(err)
	}
	return c
}

func exchange(c net.Conn, word string) error {
	c.SetDeadline(time.Now().Add(40 * time.Second))
	if _, err := c.Write([]byte(word)); err != nil {
		return err
	}
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	if err == nil && string(buf[:n]) != word {
		err = errors.New("got back " + string(buf[:n]))
	}
	return err
}

// Whatever the control plane does, Attach, Detach and Forget do not wait for
// it; and what could not be done then is done later.
func TestControlPlaneAway(t *testing.T) {
	for _, tt := range []struct {
		name  string
		away  func(*control.Server)
		again func(*control.Server)
	}{
		{"control hangs", outage(control.Hanging), outage(control.Up)},
		{"control refuses", outage(control.Refusing), outage(control.Up)},
		{
			"API hangs",
			func(s *control.Server) { s.AddFault(control.Fault{Hang: true}) },
			func(s *control.Server) { s.ClearFaults() },
		},
		{
			"API breaks",
			func(s *control.Server) { s.AddFault(control.Fault{Status: 500, Message: "oops"}) },
			func(s *control.Server) { s.ClearFaults() },
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.boot()
			_, before := w.pod("before")
			w.mustAttach(before)
			w.await(before.UID, Running)

			tt.away(w.control)
			_, during := w.pod("during")
			start := time.Now()
			w.mustAttach(during)
			w.Detach(context.Background(), before.SandboxID)
			w.Forget(context.Background(), before.SandboxID)
			// One that waits does so until the outage is over.
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("attach, detach and forget took %v", took)
			}
			if s := w.statusOf(during.UID); s.State != Pending {
				t.Errorf("the new node is %s", s.State)
			}
			tt.again(w.control)
			w.await(during.UID, Running)
			w.awaitForgotten(before.UID)
			if d := w.control.Devices(); len(d) != 1 {
				t.Errorf("devices: %v, want one", d)
			}
		})
	}
}

func outage(o control.Outage) func(*control.Server) {
	return func(s *control.Server) { s.SetOutage(o) }
}

func (w *world) statusOf(uid string) NodeStatus {
	for _, s := range w.Status() {
		if s.UID == uid {
			return s
		}
	}
	return NodeStatus{}
}

// awaitForgotten waits until nothing is left of the pod here.
func (w *world) awaitForgotten(uid string) {
	w.t.Helper()
	w.until(uid+" is forgotten", func() bool { return w.statusOf(uid).UID == "" },
		func() string { return string(w.statusOf(uid).State) + " " + w.statusOf(uid).Reason })
	if _, err := os.Stat(filepath.Join(w.dir, uid)); !errors.Is(err, os.ErrNotExist) {
		w.t.Errorf("state of %s is still there (%v)", uid, err)
	}
}

func TestForget(t *testing.T) {
	w := newWorld(t)
	w.boot()
	p, pod := w.pod("a")
	w.mustAttach(pod)
	w.await(pod.UID, Running)
	ctx := context.Background()
	for range 2 {
		if err := errors.Join(w.Detach(ctx, pod.SandboxID), w.Forget(ctx, pod.SandboxID)); err != nil {
			t.Fatal(err)
		}
	}
	w.awaitForgotten(pod.UID)
	if d := w.control.Devices(); len(d) != 0 {
		t.Errorf("devices: %v, want none", d)
	}
	if _, err := addresses(p); err == nil {
		t.Error("ts0 is still there")
	}
	if err := errors.Join(w.Detach(ctx, "unknown"), w.Forget(ctx, "unknown")); err != nil {
		t.Errorf("an unknown sandbox: %v", err)
	}
}

// A device that is already gone must not block the end of its node.
func TestForgetDeletedByHand(t *testing.T) {
	w := newWorld(t)
	w.boot()
	_, pod := w.pod("a")
	w.mustAttach(pod)
	node := w.await(pod.UID, Running)
	w.Detach(context.Background(), pod.SandboxID)
	w.await(pod.UID, Stopped)
	if err := w.devices().Delete(context.Background(), node.NodeID); err != nil {
		t.Fatal(err)
	}
	w.Forget(context.Background(), pod.SandboxID)
	w.awaitForgotten(pod.UID)
}

// A deletion that was not done when this process ended is done by the next.
func TestForgetOverRestart(t *testing.T) {
	w := newWorld(t)
	w.boot()
	_, pod := w.pod("a")
	w.mustAttach(pod)
	w.await(pod.UID, Running)
	w.control.AddFault(control.Fault{Status: 500, Message: "oops"})
	w.Forget(context.Background(), pod.SandboxID)
	w.await(pod.UID, Leaving)
	w.halt()
	w.control.ClearFaults()
	w.boot()
	w.awaitForgotten(pod.UID)
	if d := w.control.Devices(); len(d) != 0 {
		t.Errorf("devices: %v, want none", d)
	}
}

// A pod whose sandbox is created again keeps its identity.
func TestSameUIDNewSandbox(t *testing.T) {
	w := newWorld(t)
	w.boot()
	_, pod := w.pod("a")
	w.mustAttach(pod)
	before := w.await(pod.UID, Running)
	w.Detach(context.Background(), pod.SandboxID)

	second, again := w.pod("a2")
	again.UID, again.Hostname = pod.UID, pod.Hostname
	w.mustAttach(again)
	// The runtime removes the old sandbox after it has made the new one.
	w.Forget(context.Background(), pod.SandboxID)
	w.until("the new sandbox is up", func() bool {
		s := w.statusOf(pod.UID)
		return s.State == Running && s.SandboxID == again.SandboxID
	}, func() string { return "" })
	after := w.statusOf(pod.UID)
	if after.NodeID != before.NodeID || after.Addresses[0] != before.Addresses[0] {
		t.Errorf("the new sandbox is %s %v, the old was %s %v", after.NodeID, after.Addresses, before.NodeID, before.Addresses)
	}
	if addrs, err := addresses(second); err != nil || len(addrs) != 2 {
		t.Errorf("the new ts0 has %v (%v)", addrs, err)
	}
	if d := w.control.Devices(); len(d) != 1 {
		t.Errorf("devices: %v, want one", d)
	}
}

func TestRefusedAndHealed(t *testing.T) {
	w := newWorld(t)
	w.boot()
	fault := control.Fault{Path: "/api/v2/oauth/", Status: 401, Message: "API token invalid"}
	w.control.AddFault(fault)
	_, pod := w.pod("a")
	w.mustAttach(pod)
	w.until("the reason is in the status", func() bool {
		return strings.Contains(w.statusOf(pod.UID).Reason, "OAuthConfig.ClientSecret")
	}, func() string { return w.statusOf(pod.UID).Reason })
	w.control.ClearFaults()
	w.await(pod.UID, Running)
}

func TestNetNSGone(t *testing.T) {
	w := newWorld(t)
	w.boot()
	_, pod := w.pod("a")
	pod.NetNS = filepath.Join(t.TempDir(), "cni-gone")
	if _, err := w.Attach(context.Background(), pod); !errors.Is(err, podnet.ErrGone) {
		t.Errorf("Attach = %v, want ErrGone", err)
	}
	if left := w.entries(); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
	if len(w.Status()) != 0 {
		t.Errorf("left behind: %v", w.Status())
	}
}

// A pod that disappears without any call is noticed, and its device deleted,
// after the grace period.
func TestPodVanishes(t *testing.T) {
	w := newWorld(t)
	w.boot()
	p, pod := w.pod("a")
	w.mustAttach(pod)
	w.await(pod.UID, Running)
	p.End()
	w.awaitForgotten(pod.UID)
	if d := w.control.Devices(); len(d) != 0 {
		t.Errorf("devices: %v, want none", d)
	}
}

// Sync attaches what is missing and forgets what has gone, but not before it
// has looked twice.
func TestSync(t *testing.T) {
	w := newWorld(t)
	w.boot()
	_, stays := w.pod("stays")
	gone, goes := w.pod("goes")
	_, comes := w.pod("comes")
	w.mustAttach(stays)
	w.mustAttach(goes)
	w.await(stays.UID, Running)
	w.await(goes.UID, Running)
	w.halt()
	gone.End()
	w.boot()
	if err := w.Sync(context.Background(), []Pod{stays, comes}, nil); err != nil {
		t.Fatal(err)
	}
	w.await(comes.UID, Running)
	w.await(stays.UID, Running)
	w.awaitForgotten(goes.UID)
	if d := w.control.Devices(); len(d) != 2 {
		t.Errorf("devices: %v, want two", d)
	}
	// A runtime that forgets to list a pod does not end it.
	if err := w.Sync(context.Background(), []Pod{stays}, nil); err != nil {
		t.Fatal(err)
	}
	if !tstime.Sleep(t.Context(), 2*w.cfg.Grace) || w.statusOf(comes.UID).State != Running {
		t.Errorf("a pod that lives was ended: %+v", w.statusOf(comes.UID))
	}
}

// Without an API nodes are logged out at their end.
func TestStaticKey(t *testing.T) {
	w := newWorld(t)
	key := w.control.NewReusableKey("tag:k8s-pod")
	access, err := tailnet.NewStatic(tailnet.StaticConfig{AuthKey: key, ControlURL: w.control.ControlURL()})
	if err != nil {
		t.Fatal(err)
	}
	w.tailnet = access
	w.boot()
	_, pod := w.pod("a")
	pod.Tags = nil
	w.mustAttach(pod)
	w.await(pod.UID, Running)
	w.Forget(context.Background(), pod.SandboxID)
	w.awaitForgotten(pod.UID)
	if d := w.control.Devices(); len(d) != 1 || !d[0].Expired {
		t.Errorf("devices: %+v, want one that is logged out", d)
	}
}

func TestUnwritableStateDir(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	static, err := tailnet.NewStatic(tailnet.StaticConfig{AuthKey: "tskey-auth-x"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{StateDir: file, Tailnet: static}); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("New = %v, want an error that names %s", err, file)
	}
}

// A directory without a record is one that a kill left half made or half
// removed.
func TestDirectoryWithoutRecord(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.dir, "uid-half")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, podstate.StateFile), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.boot()
	if left := w.entries(); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

// Where no pod has a node, the program's end leaves an empty directory.
func TestEndsEmpty(t *testing.T) {
	w := newWorld(t)
	w.boot()
	node := w.join("a")
	w.halt()
	w.boot()
	if err := w.Forget(t.Context(), node.SandboxID); err != nil {
		t.Fatal(err)
	}
	w.until("it is forgotten", func() bool { return len(w.Status()) == 0 }, func() string { return fmt.Sprint(w.Status()) })
	w.halt()
	if left, err := os.ReadDir(w.dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v (%v)", left, err)
	}
}

// Two processes on one state directory would each undo what the other does.
func TestStateDirIsLocked(t *testing.T) {
	w := newWorld(t)
	w.boot()
	if _, err := New(Config{StateDir: w.dir, Tailnet: w.tailnet}); err == nil || !strings.Contains(err.Error(), w.dir) {
		t.Errorf("New = %v, want an error that names %s", err, w.dir)
	}
	w.halt()
	w.boot()
}
