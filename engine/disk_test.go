// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"tailscale.com/ipn"

	"tailscale-nri/engine/internal/podstate"
)

// inMounts runs the test once more in a process with mounts and a netns of its
// own, which end with it however it ends. It returns true there, where the test
// is to be done.
func inMounts(t *testing.T) bool {
	t.Helper()
	const inside, netns = "TSNRI_TEST_MOUNTS", "TSNRI_TEST_NETNS"
	if os.Getenv(inside) != "" {
		return true
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, netns+"=") })
	cmd.Env = append(cmd.Env, inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil || testing.Verbose() {
		t.Logf("%s", out)
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in a mount namespace of its own: %v", err)
	}
	return false
}

// disk is a small file system for the state directory.
type disk struct {
	t   *testing.T
	dir string
}

func newDisk(t *testing.T) *disk {
	t.Helper()
	d := &disk{t, t.TempDir()}
	if err := unix.Mount("tmpfs", d.dir, "tmpfs", 0, "size=2m,mode=700"); err != nil {
		t.Fatalf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(d.dir, unix.MNT_DETACH) })
	return d
}

func (d *disk) filler() string { return filepath.Join(d.dir, "filler") }

// fill leaves not a byte.
func (d *disk) fill() {
	f, err := os.OpenFile(d.filler(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Error(err)
		return
	}
	defer f.Close()
	for block := make([]byte, 1<<16); len(block) > 0; {
		if _, err := f.Write(block); err != nil {
			block = block[:len(block)/2]
		}
	}
}

func (d *disk) free() {
	if err := os.Remove(d.filler()); err != nil {
		d.t.Error(err)
	}
}

func (d *disk) remount(flags uintptr) {
	d.t.Helper()
	if err := unix.Mount("", d.dir, "", unix.MS_REMOUNT|flags, ""); err != nil {
		d.t.Fatalf("remounting: %v", err)
	}
}

// expectRefused attaches a pod that cannot be recorded.
func (w *world) expectRefused(name, path, why string) {
	w.t.Helper()
	_, pod := w.pod(name)
	_, err := w.Attach(context.Background(), pod)
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), why) {
		w.t.Errorf("Attach = %v, want an error that names %s and %q", err, path, why)
	}
	if s := w.statusOf(pod.UID); s.UID != "" {
		w.t.Errorf("a node is left: %+v", s)
	}
	if _, err := os.Stat(filepath.Join(w.dir, pod.UID)); !errors.Is(err, os.ErrNotExist) {
		w.t.Errorf("state is left (%v)", err)
	}
}

// A full disk refuses new pods. Those that are there go on, over a restart too,
// and what could not be written is written later.
func TestDiskFull(t *testing.T) {
	if !inMounts(t) {
		return
	}
	w, d := newWorld(t), newDisk(t)
	w.dir = d.dir
	w.boot()
	a, podA := w.pod("a")
	b, podB := w.pod("b")
	serveEcho(t, b)
	w.mustAttach(podA)
	w.mustAttach(podB)
	nodeA, nodeB := w.await(podA.UID, Running), w.await(podB.UID, Running)
	w.awaitKept(podA, 1) // what is written later leaves the place of what it replaces
	w.awaitKept(podB, 1)

	d.fill()
	w.expectRefused("c", filepath.Join(w.dir, "uid-c"), "free space")
	w.find(podA.SandboxID).update(func(r *record) { r.Recent = append(r.Recent, "nTEST") })
	expectCaller(t, a, nodeB.Addresses[0], nodeA.Addresses[0])
	d.free()
	w.until("the record is on disk", func() bool {
		r, err := podstate.Load(filepath.Join(w.dir, podA.UID))
		return err == nil && slices.Contains(r.Recent, "nTEST")
	}, func() string { return "" })

	d.fill()
	w.halt()
	w.boot()
	for _, before := range []NodeStatus{nodeA, nodeB} {
		if after := w.await(before.UID, Running); after.NodeID != before.NodeID {
			t.Errorf("%s is %s, was %s", before.Pod, after.NodeID, before.NodeID)
		}
	}
	expectCaller(t, a, nodeB.Addresses[0], nodeA.Addresses[0])
	// A pod that goes is let go, which frees room.
	w.Forget(context.Background(), podB.SandboxID)
	w.awaitForgotten(podB.UID)
	if devices := w.control.Devices(); len(devices) != 1 {
		t.Errorf("devices: %v, want one", devices)
	}
	d.free()
	_, podE := w.pod("e")
	w.mustAttach(podE)
	w.await(podE.UID, Running)
}

// If the disk fills up while a node logs in, its keys are on disk all the same:
// it is one device, after a restart too.
func TestDiskFullDuringLogin(t *testing.T) {
	if !inMounts(t) {
		return
	}
	w, d := newWorld(t), newDisk(t)
	w.dir = d.dir
	_, pod := w.pod("a")
	state := filepath.Join(w.dir, pod.UID, podstate.StateFile)
	var full atomic.Bool
	w.boot(func(c *Config) {
		c.onStep = func(s step, taken bool) {
			// The last of the keys is written, and nothing else of the login.
			if data, err := os.ReadFile(state); s == stepState && taken && err == nil &&
				strings.Contains(string(data), string(ipn.CurrentProfileStateKey)) && !full.Swap(true) {
				d.fill()
			}
		}
	})
	w.mustAttach(pod)
	before := w.await(pod.UID, Running)
	if !full.Load() {
		t.Fatal("the disk was never full")
	}
	for _, free := range []bool{false, true} {
		w.halt()
		if free {
			d.free()
		}
		w.boot()
		if after := w.await(pod.UID, Running); after.NodeID != before.NodeID {
			t.Errorf("free %v: %s, was %s", free, after.NodeID, before.NodeID)
		}
	}
	if devices := w.control.Devices(); len(devices) != 1 {
		t.Errorf("devices: %v, want one", devices)
	}
}

// A state directory that cannot be written to when the process starts refuses
// new pods; the nodes in it are served.
func TestDiskReadOnly(t *testing.T) {
	if !inMounts(t) {
		return
	}
	w, d := newWorld(t), newDisk(t)
	w.dir = d.dir
	w.boot()
	a, podA := w.pod("a")
	b, podB := w.pod("b")
	serveEcho(t, b)
	w.mustAttach(podA)
	w.mustAttach(podB)
	nodeA, nodeB := w.await(podA.UID, Running), w.await(podB.UID, Running)
	w.halt()
	// What is damaged cannot even be set aside.
	damaged := filepath.Join(w.dir, "uid-damaged")
	putDir(t, damaged, []byte("{"), nil)

	d.remount(unix.MS_RDONLY)
	if err := podstate.CheckWritable(w.dir); !errors.Is(err, unix.EROFS) {
		t.Errorf("podstate.CheckWritable = %v", err)
	}
	w.boot()
	for _, before := range []NodeStatus{nodeA, nodeB} {
		if after := w.await(before.UID, Running); after.NodeID != before.NodeID {
			t.Errorf("%s is %s, was %s", before.Pod, after.NodeID, before.NodeID)
		}
	}
	expectCaller(t, a, nodeB.Addresses[0], nodeA.Addresses[0])
	w.expectRefused("c", filepath.Join(w.dir, "uid-c"), "make it writable")
	expectFile(t, filepath.Join(damaged, podstate.RecordFile), []byte("{"))

	d.remount(0)
	_, podD := w.pod("d")
	w.mustAttach(podD)
	w.await(podD.UID, Running)
	if err := podstate.CheckWritable(w.dir); err != nil {
		t.Error(err)
	}
}
