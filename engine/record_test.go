// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"tailscale-nri/engine/internal/podstate"
)

// newState returns a node's state as it lies on disk.
func newState(t testing.TB) []byte {
	t.Helper()
	data, err := podstate.Rekey(nil, false, newLockKey)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func newLockKey(key.MachinePublic) key.NLPrivate { return key.NewNLPrivate() }

// putDir makes a pod's directory with these files; nil is none.
func putDir(t testing.TB, dir string, pod, state []byte) {
	t.Helper()
	err := os.MkdirAll(dir, 0o700)
	if pod != nil {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, podstate.RecordFile), pod, 0o600))
	}
	if state != nil {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, podstate.StateFile), state, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func expectFile(t testing.TB, path string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s holds %d bytes (%v), want %d others", path, len(got), err, len(want))
	}
}

// A pod whose record is damaged is the same device again once it is attached.
func TestDamagedRecordKeepsDevice(t *testing.T) {
	w := newWorld(t)
	w.boot()
	_, good := w.pod("good")
	p, bad := w.pod("bad")
	_, gone := w.pod("gone")
	for _, pod := range []Pod{good, bad, gone} {
		w.mustAttach(pod)
	}
	w.await(good.UID, Running)
	w.await(gone.UID, Running)
	before := w.await(bad.UID, Running)
	w.halt()
	for _, pod := range []Pod{bad, gone} {
		if err := os.Truncate(filepath.Join(w.dir, pod.UID, podstate.RecordFile), 10); err != nil {
			t.Fatal(err)
		}
	}
	w.boot()
	w.await(good.UID, Running)
	if err := w.Sync(context.Background(), []Pod{good, bad}, nil); err != nil {
		t.Fatal(err)
	}
	after := w.await(bad.UID, Running)
	if after.NodeID != before.NodeID || !slices.Equal(after.Addresses, before.Addresses) {
		t.Errorf("%s %v, was %s %v", after.NodeID, after.Addresses, before.NodeID, before.Addresses)
	}
	if addrs, err := addresses(p); err != nil || len(addrs) != 2 {
		t.Errorf("ts0 has %v (%v)", addrs, err)
	}
	w.awaitForgotten(gone.UID)
	if d := w.control.Devices(); len(d) != 2 {
		t.Errorf("devices: %v, want two", d)
	}
}

// Keys whose record is lost are kept, and are the pod's again.
func TestLostRecord(t *testing.T) {
	w := newWorld(t)
	w.boot()
	_, pod := w.pod("a")
	w.mustAttach(pod)
	before := w.await(pod.UID, Running)
	w.halt()
	if err := os.Remove(filepath.Join(w.dir, pod.UID, podstate.RecordFile)); err != nil {
		t.Fatal(err)
	}
	w.boot()
	w.mustAttach(pod)
	if after := w.await(pod.UID, Running); after.NodeID != before.NodeID {
		t.Errorf("the node is %s, was %s", after.NodeID, before.NodeID)
	}
}

// A directory that could not be used is in nobody's way but its own pod's.
func TestUnusableDirectory(t *testing.T) {
	w := newWorld(t)
	w.boot()
	_, pod := w.pod("a")
	dir := filepath.Join(w.dir, pod.UID)
	state := newState(t)
	putDir(t, dir, []byte("{"), state)
	if _, err := w.Attach(t.Context(), pod); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("attached over what is there: %v", err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, podstate.StateFile)); err != nil || !bytes.Equal(got, state) {
		t.Errorf("the keys that were there are gone: %v", err)
	}
}

// A state that no backend could use costs its own node a new device, and the
// old one goes with the pod. What was found is kept.
func TestDamagedState(t *testing.T) {
	for name, damage := range map[string]func(whole []byte) []byte{
		"empty":     func([]byte) []byte { return nil },
		"half":      func(whole []byte) []byte { return whole[:len(whole)/2] },
		"null":      func([]byte) []byte { return []byte("null") },
		"other key": func(whole []byte) []byte { return bytes.Replace(whole, []byte(`"profile-`), []byte(`"profilX-`), 1) },
	} {
		t.Run(name, func(t *testing.T) { testDamagedState(t, damage) })
	}
}

func testDamagedState(t *testing.T, damage func([]byte) []byte) {
	w := newWorld(t)
	w.boot()
	_, good := w.pod("good")
	p, bad := w.pod("bad")
	w.mustAttach(good)
	w.mustAttach(bad)
	kept, before := w.await(good.UID, Running), w.await(bad.UID, Running)
	w.halt()
	path := filepath.Join(w.dir, bad.UID, podstate.StateFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damaged := damage(whole)
	if err := os.WriteFile(path, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	w.boot()
	if after := w.await(good.UID, Running); after.NodeID != kept.NodeID {
		t.Errorf("the other pod is %s, was %s", after.NodeID, kept.NodeID)
	}
	after := w.await(bad.UID, Running)
	if after.NodeID == before.NodeID {
		t.Errorf("still %s", after.NodeID)
	}
	expectFile(t, path+podstate.DamagedExt, damaged)
	if addrs, err := addresses(p); err != nil || len(addrs) != 2 || addrs[0] != after.Addresses[0].String()+"/32" {
		t.Errorf("ts0 has %v (%v), want %v", addrs, err, after.Addresses)
	}
	r, err := podstate.Load(filepath.Join(w.dir, bad.UID))
	if err != nil || !slices.Contains(r.Former, tailcfg.StableNodeID(before.NodeID)) || r.NodeID != tailcfg.StableNodeID(after.NodeID) {
		t.Errorf("record: %+v (%v)", r, err)
	}
	w.Forget(context.Background(), bad.SandboxID)
	w.awaitForgotten(bad.UID)
	if d := w.control.Devices(); len(d) != 1 || d[0].ID != kept.NodeID {
		t.Errorf("devices: %v, want %s", d, kept.NodeID)
	}
}

// A pod that goes while its state is damaged leaves nothing in the tailnet.
func TestDamagedStateOfLeavingPod(t *testing.T) {
	w := newWorld(t)
	w.boot()
	p, pod := w.pod("a")
	w.mustAttach(pod)
	w.await(pod.UID, Running)
	w.halt()
	p.End()
	if err := os.Truncate(filepath.Join(w.dir, pod.UID, podstate.StateFile), 7); err != nil {
		t.Fatal(err)
	}
	w.boot()
	if err := w.Sync(context.Background(), nil, nil); err != nil {
		t.Fatal(err)
	}
	w.awaitForgotten(pod.UID)
	if d := w.control.Devices(); len(d) != 0 {
		t.Errorf("devices: %v, want none", d)
	}
}
