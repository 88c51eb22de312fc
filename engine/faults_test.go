// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"tailscale.com/tstime"

	"tailscale-nri/engine/internal/podnet"
	"tailscale-nri/engine/internal/podstate"
)

// A netns that cannot be reached is no reason to give up a pod that the
// runtime lists as live, however long that lasts.
func TestUnreachableNetNS(t *testing.T) {
	w := newWorld(t)
	w.boot()
	p, pod := w.pod("a")
	w.mustAttach(pod)
	before := w.await(pod.UID, Running)
	w.halt()
	// The next process does not see the mount.
	records, err := podstate.LoadAll(w.dir, func(dir string, err error) { t.Error(dir, err) })
	if err != nil {
		t.Fatal(err)
	}
	for dir, r := range records {
		r.NetNS.Paths = []string{filepath.Join(t.TempDir(), "not-mounted")}
		if _, err := podstate.Save(dir, &r); err != nil {
			t.Fatal(err)
		}
	}
	pod.NetNS = filepath.Join(t.TempDir(), "not-mounted")
	w.boot()
	if err := w.Sync(context.Background(), []Pod{pod}, nil); err != nil {
		t.Fatal(err)
	}
	w.await(pod.UID, Stopped)
	if !tstime.Sleep(t.Context(), 3*w.cfg.Grace) {
		return
	}
	if d := w.control.Devices(); len(d) != 1 || d[0].ID != before.NodeID {
		t.Fatalf("devices: %v, want %s", d, before.NodeID)
	}
	if addrs, err := addresses(p); err != nil || len(addrs) != 2 {
		t.Errorf("ts0 has %v (%v)", addrs, err)
	}
	// The mount is back.
	pod.NetNS = p.Path()
	w.mustAttach(pod)
	if after := w.await(pod.UID, Running); after.NodeID != before.NodeID {
		t.Errorf("the node is %s now, was %s", after.NodeID, before.NodeID)
	}
}

// A link that is taken away is made again.
func TestLinkTakenAway(t *testing.T) {
	for name, take := range map[string]func(host netlink.Link) error{
		"deleted": netlink.LinkDel,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.boot()
			p, pod := w.pod("a")
			w.mustAttach(pod)
			before := w.await(pod.UID, Running)
			host, err := netlink.LinkByName(podnet.HostLink(pod.SandboxID))
			if err != nil {
				t.Fatal(err)
			}
			if err := take(host); err != nil {
				t.Fatal(err)
			}
			w.await(pod.UID, Pending)
			after := w.await(pod.UID, Running)
			if after.NodeID != before.NodeID {
				t.Errorf("the node is %s now, was %s", after.NodeID, before.NodeID)
			}
			if addrs, err := addresses(p); err != nil || len(addrs) != 2 {
				t.Errorf("ts0 has %v (%v)", addrs, err)
			}
		})
	}
}

// A device that is deleted in the admin console while its pod runs comes back
// as a new one, and the pod follows.
func TestDeletedWhileRunning(t *testing.T) {
	w := newWorld(t)
	w.boot()
	p, pod := w.pod("a")
	w.mustAttach(pod)
	before := w.await(pod.UID, Running)
	if err := w.devices().Delete(context.Background(), before.NodeID); err != nil {
		t.Fatal(err)
	}
	w.until("the node is another device", func() bool {
		s := w.statusOf(pod.UID)
		return s.State == Running && s.NodeID != before.NodeID
	}, func() string { return w.statusOf(pod.UID).Reason })
	after := w.statusOf(pod.UID)
	if addrs, err := addresses(p); err != nil || len(addrs) != 2 || addrs[0] != after.Addresses[0].String()+"/32" {
		t.Errorf("ts0 has %v (%v), want %v", addrs, err, after.Addresses)
	}
	w.Forget(context.Background(), pod.SandboxID)
	w.awaitForgotten(pod.UID)
	if d := w.control.Devices(); len(d) != 0 {
		t.Errorf("devices: %v, want none", d)
	}
}

// A new sandbox that fails is removed at once, and is followed by another: the
// pod keeps its identity all the same.
func TestFailedSandboxOfAnOldPod(t *testing.T) {
	w := newWorld(t)
	w.boot()
	ctx := context.Background()
	_, first := w.pod("first")
	w.mustAttach(first)
	before := w.await(first.UID, Running)
	w.Detach(ctx, first.SandboxID)
	var last Pod
	for _, name := range []string{"second", "third"} {
		_, pod := w.pod(name)
		pod.UID, pod.Hostname = first.UID, first.Hostname
		w.mustAttach(pod)
		last = pod
		if name == "second" {
			w.Detach(ctx, pod.SandboxID)
			w.Forget(ctx, pod.SandboxID)
		}
	}
	w.Forget(ctx, first.SandboxID)
	if after := w.await(first.UID, Running); after.NodeID != before.NodeID || after.SandboxID != last.SandboxID {
		t.Errorf("%s in sandbox %s, want %s in %s", after.NodeID, after.SandboxID, before.NodeID, last.SandboxID)
	}
	if found, err := podnet.Exists(podnet.HostLink(last.SandboxID)); err != nil || !found {
		t.Errorf("the link of the last sandbox is gone (%v)", err)
	}
	if found, err := podnet.Exists(podnet.HostLink(first.SandboxID)); err != nil || found {
		t.Errorf("the link of the first sandbox is still there (%v)", err)
	}
	w.Detach(ctx, last.SandboxID)
	w.Forget(ctx, last.SandboxID)
	w.awaitForgotten(first.UID)
	if d := w.control.Devices(); len(d) != 0 {
		t.Errorf("devices: %v, want none", d)
	}
}

// After a reboot no netns is there, and the runtime lists the old sandboxes as
// ended. Their pods get new ones, in their own time.
func TestReboot(t *testing.T) {
	w := newWorld(t)
	w.boot()
	p, pod := w.pod("a")
	w.mustAttach(pod)
	before := w.await(pod.UID, Running)
	w.halt()
	p.End()
	w.boot()
	if err := w.Sync(context.Background(), nil, []string{pod.SandboxID}); err != nil {
		t.Fatal(err)
	}
	if !tstime.Sleep(t.Context(), 3*w.cfg.Grace) {
		return
	}
	_, again := w.pod("again")
	again.UID, again.Hostname = pod.UID, pod.Hostname
	w.mustAttach(again)
	if after := w.await(pod.UID, Running); after.NodeID != before.NodeID {
		t.Errorf("the node is %s now, was %s", after.NodeID, before.NodeID)
	}
}

func TestOnePerUID(t *testing.T) {
	pods := func(ids ...string) (out []Pod) {
		for _, id := range ids {
			pod := Pod{SandboxID: id, UID: id[:1], PID: 1}
			if len(id) > 2 {
				pod.PID = 0
			}
			out = append(out, pod)
		}
		return out
	}
	for _, tt := range []struct{ in, want []Pod }{
		{pods("a1", "b1"), pods("a1", "b1")},
		{pods("a1", "a2", "b1"), pods("a2", "b1")},
		{pods("a1", "a2-dead"), pods("a1")},
		{pods("a1-dead", "a2-dead"), pods("a2-dead")},
	} {
		got := onePerUID(tt.in)
		if !slices.EqualFunc(got, tt.want, func(a, b Pod) bool { return a.SandboxID == b.SandboxID }) {
			t.Errorf("onePerUID(%v) = %v, want %v", tt.in, got, tt.want)
		}
	}
}
