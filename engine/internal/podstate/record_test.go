// SPDX-License-Identifier: BSD-3-Clause

package podstate

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tailscale.com/types/key"

	"tailscale-nri/engine/internal/podnet"
)

// newRecord returns the record of a pod as it lies on disk.
func newRecord(t testing.TB, uid string) (Record, []byte) {
	t.Helper()
	r := Record{
		Version: recordVersion,
		Pod:     Pod{SandboxID: "sb", UID: uid, Namespace: "default", Name: "web", NetNS: "/var/run/netns/x", Hostname: "web"},
		NetNS:   podnet.Namespace{Paths: []string{"/var/run/netns/x"}, Dev: 4, Ino: 4026532000},
		Link:    podnet.HostLink("sb"),
		Port:    41641,
		NodeID:  "nABC11CNTRL",
	}
	if err := r.NewSecrets(); err != nil {
		t.Fatal(err)
	}
	data, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	return r, data
}

// newState returns a node's state as it lies on disk, and its keys.
func newState(t testing.TB) ([]byte, Keys) {
	t.Helper()
	path := filepath.Join(t.TempDir(), StateFile)
	state, err := OpenStore(path, untaken, uncounted)
	if err != nil {
		t.Fatal(err)
	}
	if err := EnsureNodeKey(state, newLockKey); err != nil {
		t.Fatal(err)
	}
	k, err := StoredKeys(path)
	if err != nil || k.Node.IsZero() {
		t.Fatal(k, err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data, k
}

func newLockKey(key.MachinePublic) key.NLPrivate { return key.NewNLPrivate() }

// putDir makes a pod's directory with these files; nil is none.
func putDir(t testing.TB, dir string, pod, state []byte) {
	t.Helper()
	err := os.MkdirAll(dir, 0o700)
	if pod != nil {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, RecordFile), pod, 0o600))
	}
	if state != nil {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, StateFile), state, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// load loads what is below dir, with what was reported.
func load(t testing.TB, dir string) (records map[string]Record, reports []string) {
	t.Helper()
	records, err := LoadAll(dir, func(_ string, err error) { reports = append(reports, err.Error()) })
	if err != nil {
		t.Fatal(err)
	}
	return records, reports
}

func expectFile(t testing.TB, path string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s holds %d bytes (%v), want %d others", path, len(got), err, len(want))
	}
}

// Wherever a record was cut off, nothing of it is lost, the other pods' are
// read, and a pod whose key is whole keeps its device.
func TestTruncatedRecord(t *testing.T) {
	_, whole := newRecord(t, "uid-a")
	_, other := newRecord(t, "uid-b")
	state, want := newState(t)
	for n := range len(whole) {
		dir := t.TempDir()
		a := filepath.Join(dir, "uid-a")
		putDir(t, a, whole[:n], state)
		putDir(t, filepath.Join(dir, "uid-b"), other, nil)
		records, reports := load(t, dir)
		r, ok := records[a]
		if len(records) != 2 || len(reports) != 1 || !ok || r.Pod.UID != "uid-a" || !r.Registering || r.Pod.SandboxID != UnknownSandbox || r.LogID.IsZero() {
			t.Fatalf("cut at %d: %+v, %q", n, records, reports)
		}
		expectFile(t, filepath.Join(a, RecordFile+DamagedExt), whole[:n])
		if k, err := StoredKeys(filepath.Join(a, StateFile)); err != nil || k != want {
			t.Fatalf("cut at %d: the node's key is %v (%v)", n, k, err)
		}
		// The next process finds what this one has made of it.
		if records, reports := load(t, dir); len(records) != 2 || reports != nil {
			t.Fatalf("cut at %d, second start: %+v, %q", n, records, reports)
		}
	}
}

// Without a key nothing can be saved: all is set aside, and what was set aside
// before stays.
func TestTruncatedRecordWithoutKey(t *testing.T) {
	_, whole := newRecord(t, "uid-a")
	dir := t.TempDir()
	a := filepath.Join(dir, "uid-a")
	aside := []string{a + ".damaged", a + ".damaged-2", a + ".damaged-3"}
	for i, n := range []int{0, len(whole) / 2, len(whole) - 1} {
		putDir(t, a, whole[:n], []byte("{"))
		records, reports := load(t, dir)
		if len(records) != 0 || len(reports) != 1 || !strings.Contains(reports[0], aside[i]+";") {
			t.Errorf("%+v, %q; want a report that names %s", records, reports, aside[i])
		}
		if named := strings.Contains(reports[0], "nABC11CNTRL"); named != (n == len(whole)-1) {
			t.Errorf("cut at %d of %d, the report is %q", n, len(whole), reports[0])
		}
		expectFile(t, filepath.Join(aside[i], RecordFile), whole[:n])
	}
	for i, n := range []int{0, len(whole) / 2, len(whole) - 1} {
		expectFile(t, filepath.Join(aside[i], RecordFile), whole[:n])
	}
}

// What reads as a record and is not this pod's, or not of this version, is not
// taken for it.
func TestOtherRecord(t *testing.T) {
	state, _ := newState(t)
	for name, tt := range map[string]struct {
		change  func(*Record)
		rescued bool
	}{
		"older":              {func(r *Record) { r.Version = 0 }, true},
		"newer":              {func(r *Record) { r.Version = 2 }, true},
		"of another pod":     {func(r *Record) { r.Pod.UID = "uid-b" }, false},
		"another's link":     {func(r *Record) { r.Link = "eth0" }, true},
		"a link and no name": {func(r *Record) { r.Pod.SandboxID = "" }, true},
	} {
		r, _ := newRecord(t, "uid-a")
		tt.change(&r)
		data, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		a := filepath.Join(dir, "uid-a")
		putDir(t, a, data, state)
		records, reports := load(t, dir)
		aside := filepath.Join(a, RecordFile+DamagedExt)
		if !tt.rescued {
			aside = filepath.Join(a+DamagedExt, RecordFile)
		}
		if _, ok := records[a]; ok != tt.rescued || len(reports) != 1 {
			t.Errorf("%s: %+v, %q", name, records, reports)
		}
		expectFile(t, aside, data)
	}
}

// A later version of the same form may say more, and a kill may leave half a
// file next to the record.
func TestRecordWithMore(t *testing.T) {
	r, data := newRecord(t, "uid-a")
	dir := t.TempDir()
	a := filepath.Join(dir, "uid-a")
	putDir(t, a, bytes.Replace(data, []byte("{"), []byte(`{"later": [1],`), 1), nil)
	if err := os.WriteFile(filepath.Join(a, RecordFile+".new"), data[:9], 0o600); err != nil {
		t.Fatal(err)
	}
	records, reports := load(t, dir)
	if got := records[a]; got.NodeID != r.NodeID || reports != nil {
		t.Errorf("%+v, %q", records, reports)
	}
	if _, err := Save(a, &r); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(a, RecordFile+".new")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half a file is left: %v", err)
	}
}

// FuzzRecord holds that whatever is in a record, it is this pod's or refused,
// and names no link but the pod's own.
func FuzzRecord(f *testing.F) {
	_, data := newRecord(f, "uid-a")
	f.Add(data)
	f.Add(data[:len(data)/2])
	f.Add(bytes.Replace(data, []byte("uid-a"), []byte("uid-b"), 1))
	f.Add(bytes.Replace(data, []byte(`"version": 1`), []byte(`"version": 2`), 1))
	for _, s := range []string{
		"", "null", "{}", "[]", `{"version":1}`, `{"version":1,"pod":{"uid":"uid-a"}}`, "\x00",
		`{"version":1,"pod":{"uid":"uid-a"},"pod":{"uid":"uid-b"}}`,
		`{"version":1,"pod":{"uid":"uid-a"},"link":"eth0"}`,
		`{"version":1,"pod":{"uid":"uid-a"},"logID":"0"}`, `{"version":1,"pod":{"uid":"uid-a"},"discoKey":"AA=="}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRecord(data, "uid-a")
		if err != nil {
			if r.Pod.UID != "" || r.Link != "" {
				t.Errorf("%v, and %+v", err, r)
			}
			return
		}
		if r.Pod.UID != "uid-a" || r.Version != recordVersion || r.Link != podnet.HostLink(r.Pod.SandboxID) {
			t.Errorf("%+v", r)
		}
		r.DiscoPrivate()
		r.LogID.Public()
		dir := filepath.Join(t.TempDir(), "uid-a")
		if _, err := Save(dir, &r); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(dir); err != nil {
			t.Errorf("written and read again: %v", err)
		}
	})
}

// What a kill has left half written goes at the next start, and nothing else.
func TestHalfWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "uid")
	_, data := newRecord(t, "uid")
	state, _ := newState(t)
	putDir(t, dir, data, state)
	kept := []string{StateFile + DamagedExt, "netmap", "notes.new.txt"}
	for _, name := range append(kept, StateFile+".tmp2677123969", RecordFile+".new", "netmap.new", ".writable") {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	records, err := LoadAll(filepath.Dir(dir), func(dir string, err error) { t.Error(dir, err) })
	if err != nil || len(records) != 1 {
		t.Fatal(records, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, entry := range entries {
		got = append(got, entry.Name())
	}
	want := append(kept, StateFile, RecordFile)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("left: %q, want %q", got, want)
	}
}

// What may name a directory below the state directory, and nothing that leads out of it.
func TestValidUID(t *testing.T) {
	for uid, want := range map[string]bool{
		"8d2f1c1e-0e4b-4a55-9d1c-0c8a3d5e7f10": true, "0123456789abcdef0123456789abcdef": true, "a": true, "Z9._-": true,
		strings.Repeat("a", 128): true, strings.Repeat("a", 129): false,
		"": false, ".": false, "..": false, ".hook": false, "-a": false, "_a": false, "a/b": false, "a\x00": false, "a\n": false, "ä": false, "a b": false,
	} {
		if got := ValidUID(uid); got != want {
			t.Errorf("%q: %v, want %v", uid, got, want)
		}
	}
}
