// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"tailscale-nri/engine/internal/nstest"
	"tailscale-nri/engine/internal/podstate"
	"tailscale-nri/engine/tailnet"
	"tailscale-nri/k3d/lab/control"
)

// secondHost is a process in a network namespace of its own, as on another host, with
// a copy of the first one's state.
type secondHost struct {
	*process
	t    *testing.T
	dir  string
	boot order
}

// clone makes a second host of what the world has on its disk, and boots it.
func (w *world) clone(authKey string) *secondHost {
	w.t.Helper()
	m := &secondHost{t: w.t, dir: filepath.Join(w.t.TempDir(), "copy"), process: startProcess(w.t, true)}
	w.t.Cleanup(func() {
		m.kill()
		if w.t.Failed() {
			w.t.Logf("the copy's log:\n%s", m.log.String())
		}
	})
	if err := os.CopyFS(m.dir, os.DirFS(w.dir)); err != nil {
		w.t.Fatal(err)
	}
	unused(w.t, m.dir, 24*time.Hour)
	connect(w.t, m.cmd.Process.Pid)
	m.boot = order{Do: "boot", Dir: m.dir, APIURL: w.control.APIURL(), ControlURL: w.control.ControlURL(), AuthKey: authKey, Settled: time.Minute}
	w.settled()
	return m
}

// unused has nobody have used the state directory for that long.
func unused(t *testing.T, dir string, d time.Duration) {
	t.Helper()
	data, err := json.Marshal(podstate.Served{HostBoot: "the original", At: time.Now().Add(-d)})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, podstate.ServedFile), data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// settled waits until the control plane has had all nodes' first requests, after
// which a poll may be opened again, and sees all connected.
func (w *world) settled() {
	w.t.Helper()
	w.until("all devices are connected", func() bool {
		return !slices.ContainsFunc(w.control.Devices(), func(d control.Device) bool { return !d.Online })
	}, func() string { return fmt.Sprint(w.control.Devices()) })
}

// connect gives the process's network namespace a way to the tests' one.
func connect(t *testing.T, pid int) {
	t.Helper()
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	there, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	here := &netlink.Handle{}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "copy0"
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "copy1", PeerNamespace: netlink.NsFd(int(ns))}))
	t.Cleanup(func() {
		if l, err := netlink.LinkByName("copy0"); err == nil {
			netlink.LinkDel(l)
		}
	})
	for name, end := range map[string]struct {
		*netlink.Handle
		addr string
	}{"copy0": {here, "172.30.71.1"}, "copy1": {there, "172.30.71.2"}, "lo": {there, ""}} {
		l, err := end.LinkByName(name)
		must(err)
		must(end.LinkSetUp(l))
		if end.addr != "" {
			must(end.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: netip.MustParseAddr(end.addr).AsSlice(), Mask: net.CIDRMask(24, 32)}}))
		}
	}
	must(there.RouteAdd(&netlink.Route{Gw: net.ParseIP("172.30.71.1")}))
}

// tell gives an order, which must be obeyed.
func (m *secondHost) tell(o order) report {
	m.t.Helper()
	r, ok := m.ask(o)
	if !ok || r.Err != "" {
		m.t.Fatalf("%s on the copy: %s", o.Do, r.Err)
	}
	return r
}

// until waits for a condition on the host's nodes.
func (m *secondHost) until(what string, ok func([]NodeStatus) bool) {
	m.t.Helper()
	var last []NodeStatus
	for deadline := time.Now().Add(40 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if last = m.tell(order{Do: "status"}).Status; ok(last) {
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("not seen: %s; last: %+v", what, last)
		}
	}
}

func noNodes(nodes []NodeStatus) bool { return len(nodes) == 0 }

// expectUntouched checks that the node runs as it did, under the same device.
func (w *world) expectUntouched(before NodeStatus) {
	w.t.Helper()
	after := w.statusOf(before.UID)
	if after.State != Running || after.NodeID != before.NodeID || !slices.Equal(after.Addresses, before.Addresses) {
		w.t.Errorf("%s is %s %s %v, was %s %v", before.Pod, after.State, after.NodeID, after.Addresses, before.NodeID, before.Addresses)
	}
	if !slices.ContainsFunc(w.control.Devices(), func(d control.Device) bool {
		return d.ID == before.NodeID && !d.Expired && d.Online
	}) {
		w.t.Errorf("the tailnet does not have %s, connected, any more: %+v", before.NodeID, w.control.Devices())
	}
}

// A second host starts on a copy of this one's state: it deletes nothing and
// says what it found, pods with other UIDs and with the same get devices of their
// own, and both hosts go on.
func TestCopiedState(t *testing.T) {
	for name, manner := range manners {
		t.Run(name, func(t *testing.T) { copyState(t, newWorld(t, manner)) })
	}
}

// manners are those of control planes: what they tell of a device differs, and what a
// log-out does.
var manners = map[string]func(*control.Config){"Tailscale": func(*control.Config) {}, "Headscale": inHeadscalesManner}

func copyState(t *testing.T, w *world) {
	w.enter("k8s")
	w.boot()
	nodes := []NodeStatus{w.join("a"), w.join("b"), w.join("same")}
	m := w.clone("")
	p := nstest.NewPod(t)
	same := Pod{
		SandboxID: "sbsame2", UID: nodes[2].UID, Namespace: "default", Name: "same", Tags: []string{"tag:k8s-pod"},
		NetNS: strings.Replace(p.Path(), "/self/", fmt.Sprintf("/%d/", os.Getpid()), 1), Hostname: nodes[2].Hostname,
	}
	m.tell(m.boot)
	m.tell(order{Do: "sync", Live: []Pod{same}, Ended: []string{"sbb"}})
	m.until("only the pod that is there has a node", func(nodes []NodeStatus) bool {
		return len(nodes) == 1 && nodes[0].State == Running && nodes[0].NodeID != ""
	})
	here := m.tell(order{Do: "status"}).Status[0]
	if here.NodeID == nodes[2].NodeID || slices.Contains(here.Addresses, nodes[2].Addresses[0]) {
		t.Errorf("the pod is the same device on both hosts: %+v", here)
	}
	for _, n := range nodes {
		w.expectUntouched(n)
	}
	if c := w.control.Counters(); c.DevicesDeleted != 0 {
		t.Errorf("%d devices were deleted", c.DevicesDeleted)
	}
	log := m.log.String()
	if n := strings.Count(log, "looks like a copy of another host's state"); n != 3 || !strings.Contains(log, "empty Config.StateDir") {
		t.Errorf("the log says %d times what this looks like, want 3", n)
	}
	for _, dir := range []string{"uid-a", "uid-b"} {
		if _, err := os.Stat(filepath.Join(m.dir, dir+podstate.CopiedExt, podstate.StateFile)); err != nil {
			t.Errorf("the copied state is not set aside: %v", err)
		}
	}
	// What the copy lets go of is its own device, and no other.
	m.tell(order{Do: "forget", Sandbox: same.SandboxID})
	m.until("the pod is gone", noNodes)
	for _, n := range nodes {
		w.expectUntouched(n)
	}
	if c := w.control.Counters(); c.DevicesDeleted != 1 {
		t.Errorf("%d devices were deleted, want the copy's own", c.DevicesDeleted)
	}
}

// What another host runs keeps its device and its name however long it is
// offline, also for the next process.
func TestCopiedStateIsRemembered(t *testing.T) {
	w := newWorld(t)
	w.enter("k8s")
	w.boot()
	original := w.join("web")
	m := w.clone("")
	m.tell(m.boot)
	m.tell(order{Do: "sync"})
	m.until("the copy is let alone", noNodes)
	w.enter("k8s")
	w.dir = m.dir
	m.kill()
	w.age(original.NodeID, 30*24*time.Hour)
	w.boot(soon)
	w.join("web", again)
	w.asked()
	if err := w.sweepOnce(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if got := w.names(); got != "k8s-default-web k8s-default-web-1" {
		t.Errorf("devices %q", got)
	}
}

// With a static key a log-out would expire the original's key. What the control
// plane tells the copy's own nodes decides; where it tells nothing, nothing is
// done.
func TestCopiedStateWithStaticKey(t *testing.T) {
	for _, test := range []struct {
		manner string
		sees   bool
	}{{"Tailscale", false}, {"Tailscale", true}, {"Headscale", false}, {"Headscale", true}} {
		sees := test.sees
		t.Run(fmt.Sprintf("%s, with a node that sees it: %v", test.manner, sees), func(t *testing.T) {
			w := newWorld(t, manners[test.manner])
			key := w.control.NewReusableKey("tag:k8s-pod")
			w.static(key)
			w.boot()
			original := w.join("a", untagged)
			m := w.clone(key)
			m.tell(m.boot)
			want := "a static auth key cannot ask the API"
			if sees {
				want = "looks like a copy of another host's state"
				p := nstest.NewPod(t)
				m.tell(order{Do: "attach", Pod: Pod{
					SandboxID: "sbobserver", UID: "uid-observer", Namespace: "default", Name: "observer", Hostname: "observer",
					NetNS: strings.Replace(p.Path(), "/self/", fmt.Sprintf("/%d/", os.Getpid()), 1),
				}})
				m.until("the observer runs", func(nodes []NodeStatus) bool {
					return slices.ContainsFunc(nodes, func(n NodeStatus) bool { return n.State == Running })
				})
			}
			m.tell(order{Do: "sync"})
			m.until("the copy is let alone", func(nodes []NodeStatus) bool {
				return !slices.ContainsFunc(nodes, func(n NodeStatus) bool { return n.UID == original.UID })
			})
			w.expectUntouched(original)
			if log := m.log.String(); !strings.Contains(log, want) || strings.Contains(log, "logged out") {
				t.Errorf("the copy's log lacks %q, or says that it logged out", want)
			}
		})
	}
}

func untagged(p *Pod) { p.Tags = nil }

// static has the world use one auth key.
func (w *world) static(key string) {
	w.t.Helper()
	access, err := tailnet.NewStatic(tailnet.StaticConfig{AuthKey: key, ControlURL: w.control.ControlURL()})
	if err != nil {
		w.t.Fatal(err)
	}
	w.tailnet = access
}

// rebooted has the next engine take the host for one that was booted again.
func rebooted(cfg *Config) {
	cfg.hostBoot, cfg.copyPause, cfg.copyPatience = "another boot", 10*time.Millisecond, 20*time.Second
}

// After a reboot, a pod that comes back is the device it was at once, though that
// still looks connected. The devices of pods that are gone are deleted as soon as
// the tailnet has noticed that the host was away.
func TestRebootLooksConnected(t *testing.T) {
	w := newWorld(t)
	w.enter("k8s")
	m := &secondHost{t: t, dir: w.dir, process: startProcess(t, true)}
	t.Cleanup(m.kill)
	connect(t, m.cmd.Process.Pid)
	m.tell(order{Do: "boot", Dir: m.dir, APIURL: w.control.APIURL(), ControlURL: w.control.ControlURL()})
	var pods []Pod
	for _, name := range []string{"gone", "back"} {
		p, pod := w.pod(name)
		pod.NetNS = strings.Replace(p.Path(), "/self/", fmt.Sprintf("/%d/", os.Getpid()), 1)
		pods = append(pods, pod)
		m.tell(order{Do: "attach", Pod: pod})
		defer p.End()
	}
	var before NodeStatus
	m.until("both run", func(nodes []NodeStatus) bool {
		for _, n := range nodes {
			if n.Pod == "back" {
				before = n
			}
		}
		return len(nodes) == 2 && nodes[0].State == Running && nodes[1].State == Running
	})
	copied := w.t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(w.dir)); err != nil {
		t.Fatal(err)
	}
	w.dir = copied
	// The tailnet does not hear of the end.
	if err := m.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	log := &logged{t: t}
	w.boot(log.log, rebooted, graceOf(time.Second))
	// The old sandboxes' namespaces are not this host's to find.
	for _, n := range w.snapshot() {
		n.update(func(r *record) { r.NetNS.Cookie++ })
		n.op.Lock()
		n.disk.foreign = true
		n.op.Unlock()
	}
	_, again := w.pod("back")
	again.SandboxID = "sbback2"
	if err := w.Sync(context.Background(), []Pod{again}, nil); err != nil {
		t.Fatal(err)
	}
	w.until("the one that is gone waits", func() bool { return log.count("this host has just rebooted") >= 1 }, func() string { return fmt.Sprint(w.Status()) })
	if after := w.await(again.UID, Running); after.NodeID != before.NodeID || !slices.Equal(after.Addresses, before.Addresses) {
		t.Errorf("the pod is %s %v, was %s %v", after.NodeID, after.Addresses, before.NodeID, before.Addresses)
	}
	if log.count("its state is a copy of another host's") == 0 {
		t.Error("the log does not say that the device was connected")
	}
	if c := w.control.Counters(); c.DevicesDeleted != 0 {
		t.Errorf("%d devices were deleted while they looked connected", c.DevicesDeleted)
	}
	m.kill()
	w.awaitForgotten(pods[0].UID)
	if d := w.control.Devices(); len(d) != 1 {
		t.Errorf("devices: %v, want one", d)
	}
}

// Where the API does not answer, a pod that comes back after a reboot is served
// all the same.
func TestRebootWithoutAPI(t *testing.T) {
	w := newWorld(t)
	w.boot()
	p, pod := w.pod("a")
	w.mustAttach(pod)
	before := w.await(pod.UID, Running)
	w.halt()
	p.End()
	w.control.AddFault(control.Fault{Status: 503, Message: "away"})
	w.boot(rebooted)
	_, next := w.pod("a")
	next.SandboxID = "sba2"
	w.mustAttach(next)
	if after := w.await(pod.UID, Running); after.NodeID != before.NodeID {
		t.Errorf("the pod is %s, was %s", after.NodeID, before.NodeID)
	}
}
