// SPDX-License-Identifier: BSD-3-Clause

package podstate

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"tailscale.com/ipn/store"
	"tailscale.com/types/logger"
)

func TestTruncatedState(t *testing.T) {
	whole, want := newState(t)
	path := filepath.Join(t.TempDir(), StateFile)
	for n := range len(whole) + 1 {
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		k, err := StoredKeys(path)
		switch {
		case n == len(whole) && (err != nil || k != want):
			t.Errorf("whole: %v, %v; want %v", k, err, want)
		case n < len(whole) && (!errors.Is(err, ErrDamaged) || k != (Keys{})):
			t.Errorf("cut at %d: %v, %v; want ErrDamaged", n, k, err)
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
		if _, err := ParseKeys(data); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for name, data := range map[string][]byte{
		"new":                     []byte("{}"),
		"half made":               stateWith(t, whole, map[string]string{"_current-profile": ""}),
		"made, and never started": stateWith(t, whole, map[string]string{"_machinekey": ""}),
	} {
		if _, err := ParseKeys(data); err != nil {
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
		before, err := ParseKeys(data)
		if err != nil {
			return
		}
		path := filepath.Join(t.TempDir(), StateFile)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := store.NewFileStore(logger.Discard, path); err != nil {
			t.Fatalf("tailscale.com's file store does not read it: %v", err)
		}
		state, err := OpenStore(path, untaken, uncounted)
		if err != nil {
			t.Fatalf("our store does not read it: %v", err)
		}
		if err := errors.Join(EnsureNodeKey(state, newLockKey), state.WriteState("x", []byte("y"))); err != nil {
			t.Fatal(err)
		}
		after, err := StoredKeys(path)
		if err != nil || after.Node.IsZero() || !before.Node.IsZero() && after != before {
			t.Errorf("the keys were %v, are %v (%v)", before, after, err)
		}
	})
}
