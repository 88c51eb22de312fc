// SPDX-License-Identifier: BSD-3-Clause

package podstate

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"tailscale.com/ipn"
	"tailscale.com/ipn/store"
	"tailscale.com/types/logger"
)

// untaken takes no step.
func untaken(write func() error) error { return write() }

// uncounted counts no bytes.
func uncounted(int) {}

// What the store has written is what tailscale.com's own store reads, at once.
func TestStateStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), StateFile)
	writes, counted, size := 0, 0, 0
	s, err := OpenStore(path, func(write func() error) error { writes++; return write() }, func(n int) { counted += n })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.ReadState("a"); !errors.Is(err, ipn.ErrStateNotExist) {
		t.Errorf("a value that is not there: %v", err)
	}
	for _, change := range []struct {
		values map[ipn.StateKey][]byte
		writes int // so far
	}{
		{map[ipn.StateKey][]byte{"a": []byte("1"), "b": []byte("2")}, 1},
		{map[ipn.StateKey][]byte{"a": []byte("1")}, 1},
		{map[ipn.StateKey][]byte{"a": []byte("3")}, 2},
		{map[ipn.StateKey][]byte{"b": nil, "c": nil}, 3},
	} {
		before := writes
		if err := s.writeStates(change.values); err != nil {
			t.Fatal(err)
		}
		if file, err := os.Stat(path); err == nil && writes > before {
			size += int(file.Size())
		}
		if writes != change.writes || counted != size {
			t.Errorf("%v: %d writes of %d bytes so far, want %d of %d", change.values, writes, counted, change.writes, size)
		}
		theirs, err := store.NewFileStore(logger.Discard, path)
		if err != nil {
			t.Fatal(err)
		}
		for id := range change.values {
			want, wantErr := s.ReadState(id)
			got, err := theirs.ReadState(id)
			if string(got) != string(want) || !errors.Is(err, wantErr) {
				t.Errorf("%s: on disk %q (%v), in the store %q (%v)", id, got, err, want, wantErr)
			}
		}
	}
	s.syncFile()
	again, err := OpenStore(path, untaken, uncounted)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := again.ReadState("a"); string(v) != "3" || err != nil {
		t.Errorf("read again: %q, %v", v, err)
	}
}

// A change that could not be written is not in the store: it can be tried again.
func TestStateStoreCannotWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pod")
	path := filepath.Join(dir, StateFile)
	s, err := OpenStore(path, untaken, uncounted)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.WriteState("a", []byte("1")); err == nil {
		t.Error("written to a directory that is not there")
	}
	if v, err := s.ReadState("a"); !errors.Is(err, ipn.ErrStateNotExist) {
		t.Errorf("in the store: %q (%v)", v, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteState("a", []byte("1")); err != nil {
		t.Error(err)
	}
	expectFile(t, path, []byte("{\n  \"a\": \"MQ==\"\n}"))
}
