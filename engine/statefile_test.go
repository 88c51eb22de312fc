// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"tailscale.com/ipn/store"
	"tailscale.com/tailcfg"
	"tailscale.com/types/logger"
)

func TestTruncatedState(t *testing.T) {
	whole, want := newState(t)
	path := filepath.Join(t.TempDir(), stateFile)
	for n := range len(whole) + 1 {
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		k, err := storedKeys(path)
		switch {
		case n == len(whole) && (err != nil || k != want):
			t.Errorf("whole: %v, %v; want %v", k, err, want)
		case n < len(whole) && (!errors.Is(err, errDamaged) || k != (keys{})):
			t.Errorf("cut at %d: %v, %v; want errDamaged", n, k, err)
		}
	}
}

// stateWith returns a whole state with some of its values changed; nil removes
// one.
func stateWith(t testing.TB, whole []byte, changes map[string]string) []byte {
	t.Helper()
	var values map[string][]byte
	if err := json.Unmarshal(whole, &values); err != nil {
		t.Fatal(err)
	}
	for k, v := range changes {
		if v == "" {
			delete(values, k)
		} else {
			values[k] = []byte(v)
		}
	}
	data, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// oddStates are states that are JSON and that no backend could use.
func oddStates(t testing.TB, whole []byte) map[string][]byte {
	t.Helper()
	with := func(k, v string) []byte { return stateWith(t, whole, map[string]string{k: v}) }
	return map[string][]byte{
		"null":             []byte("null"),
		"list":             []byte("[]"),
		"machine key":      with("_machinekey", "privkey:00"),
		"zero machine key": with("_machinekey", "privkey:0000000000000000000000000000000000000000000000000000000000000000"),
		"no profiles":      with("_profiles", ""),
		"profiles":         with("_profiles", "x"),
		"null profile":     with("_profiles", `{"0001":null}`),
		"other profile":    with("_profiles", `{"0001":{"ID":"0002","Key":"profile-0001"}}`),
		"current":          with("_current-profile", "profile-0009"),
		"preferences":      with("profile-0001", "{"),
		"node key":         with("profile-0001", `{"Config":{"PrivateNodeKey":"privkey:00"}}`),
	}
}

func TestOddState(t *testing.T) {
	whole, _ := newState(t)
	for name, data := range oddStates(t, whole) {
		if _, err := parseState(data); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for name, data := range map[string][]byte{
		"new":                     []byte("{}"),
		"half made":               stateWith(t, whole, map[string]string{"_current-profile": ""}),
		"made, and never started": stateWith(t, whole, map[string]string{"_machinekey": ""}),
	} {
		if _, err := parseState(data); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzState holds that a state in which a key is found is one that a file store
// and the engine read in the same way, and that can be written to.
func FuzzState(f *testing.F) {
	whole, _ := newState(f)
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte{})
	f.Add([]byte("{}"))
	for _, data := range oddStates(f, whole) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		before, err := parseState(data)
		if err != nil {
			return
		}
		path := filepath.Join(t.TempDir(), stateFile)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := store.NewFileStore(logger.Discard, path); err != nil {
			t.Fatalf("tailscale.com's file store does not read it: %v", err)
		}
		state, err := openStateStore(path, untaken)
		if err != nil {
			t.Fatalf("our store does not read it: %v", err)
		}
		if err := errors.Join(ensureNodeKey(state, newLockKey), state.WriteState("x", []byte("y"))); err != nil {
			t.Fatal(err)
		}
		after, err := storedKeys(path)
		if err != nil || after.node.IsZero() || !before.node.IsZero() && after != before {
			t.Errorf("the keys were %v, are %v (%v)", before, after, err)
		}
	})
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
	path := filepath.Join(w.dir, bad.UID, stateFile)
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
	expectFile(t, path+damagedExt, damaged)
	if addrs, err := addresses(p); err != nil || len(addrs) != 2 || addrs[0] != after.Addresses[0].String()+"/32" {
		t.Errorf("ts0 has %v (%v), want %v", addrs, err, after.Addresses)
	}
	r, err := loadRecord(filepath.Join(w.dir, bad.UID))
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
	if err := os.Truncate(filepath.Join(w.dir, pod.UID, stateFile), 7); err != nil {
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
