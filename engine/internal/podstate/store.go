// SPDX-License-Identifier: BSD-3-Clause

package podstate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"sync"
	"time"

	"tailscale.com/ipn"
)

// StateFile is the name of the node's keys and preferences in the pod's directory.
const StateFile = "tailscaled.state"

// Take carries out a change of what is on disk, for a type that makes its changes
// itself. The engine's makes a step of it.
type Take func(change func() error) error

// syncPause is the time from a change of a node's state to the moment at which
// it is forced to the disk.
const syncPause = time.Second

// Store keeps a node's keys and preferences in one file, in the form of
// tailscale.com's FileStore. Each change is a step.
//
// A FileStore waits for the disk at each change: eight times in a node's first
// start and twice in every other, mostly with the backend's lock held. That is
// 10 ms each time on a good disk, 100 ms on a busy one, and the file system's
// journal makes the hooks' own writes wait with it. This one writes the file
// before it returns, so that the end of this process costs nothing, and syncs
// it once, a second later. A power failure in between may cost the change, as
// it may cost the record's.
type Store struct {
	path    string
	take    Take
	written func(bytes int)

	mu     sync.Mutex
	values map[ipn.StateKey][]byte
	sync   *time.Timer // nil until the first change
}

// OpenStore reads the state in a file. One that does not exist, or is
// empty, is a state without values. Every change goes through take, and written is
// called with the size of each version of the file.
func OpenStore(path string, take Take, written func(bytes int)) (*Store, error) {
	s := &Store{path: path, take: take, written: written, values: map[ipn.StateKey][]byte{}}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(data) == 0 {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &s.values)
	}
	if err == nil && s.values == nil {
		err = errors.New(`it is "null"`)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the node's state: %w", err)
	}
	return s, nil
}

// ReadState implements [ipn.StateStore].
func (s *Store) ReadState(id ipn.StateKey) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.values[id]
	if !ok {
		return nil, ipn.ErrStateNotExist
	}
	return data, nil
}

// WriteState implements [ipn.StateStore]. nil removes the value. What could not
// be written is not in the store either.
func (s *Store) WriteState(id ipn.StateKey, data []byte) error {
	return s.writeStates(map[ipn.StateKey][]byte{id: data})
}

// writeStates writes several values at once.
func (s *Store) writeStates(changes map[ipn.StateKey][]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, changed := maps.Clone(s.values), false
	for id, data := range changes {
		was, ok := next[id]
		if ok == (data != nil) && bytes.Equal(was, data) {
			continue
		}
		changed = true
		if data == nil {
			delete(next, id)
		} else {
			next[id] = bytes.Clone(data)
		}
	}
	if !changed {
		return nil
	}
	text, err := encodeState(next)
	if err != nil {
		return err
	}
	if err := s.take(func() error { return ReplaceFile(s.path, text) }); err != nil {
		return err
	}
	s.written(len(text))
	s.values = next
	if s.sync == nil {
		s.sync = time.AfterFunc(syncPause, s.syncFile)
	} else {
		s.sync.Reset(syncPause)
	}
	return nil
}

func encodeState(values map[ipn.StateKey][]byte) ([]byte, error) {
	return json.MarshalIndent(values, "", "  ")
}

// encode returns what the file holds.
func (s *Store) encode() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return encodeState(s.values)
}

// stopSync leaves the file to the kernel's own time.
func (s *Store) stopSync() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sync != nil {
		s.sync.Stop()
	}
}

// syncFile forces the file to the disk. The next writer reports a
// failure; a file that is gone belonged to a node that has left.
func (s *Store) syncFile() {
	if f, err := os.Open(s.path); err == nil {
		_ = f.Sync()
		f.Close()
	}
}
