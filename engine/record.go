// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"go4.org/mem"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/logid"

	"tailscale-nri/engine/internal/podnet"
)

// recordVersion is the version of pod.json. A file of another version is set
// aside, not read.
const recordVersion = 1

const (
	recordFile = "pod.json"
	stateFile  = "tailscaled.state"
)

// record is what a node needs to be found again: its pod, its link and what
// it is called in the tailnet. It is written before the step that it
// describes is taken.
type record struct {
	Version int              `json:"version"`
	Pod     Pod              `json:"pod"`
	NetNS   podnet.Namespace `json:"netns"`
	Link    string           `json:"link"` // host end

	// LogID names the node to Tailscale's control plane. No log is ever
	// sent anywhere.
	LogID logid.PrivateID `json:"logID"`
	// Port is the node's UDP port, 0 until it has one. A peer with a
	// session finds the node there after a restart.
	Port uint16 `json:"port,omitempty"`
	// DiscoKey is the node's private disco key. A peer that sees a new one
	// drops its session, at the very moment at which we greet it.
	DiscoKey []byte `json:"discoKey,omitempty"`
	// NodeID is the device in the tailnet, "" until it is one.
	NodeID tailcfg.StableNodeID `json:"nodeID,omitempty"`
	// Registering is set before the node first knocks, and cleared once
	// NodeID is known: in between it may be in the tailnet without our having
	// heard of it.
	Registering bool `json:"registering,omitempty"`
	// Former are devices that the node was before it had to register anew.
	// They are deleted with it.
	Former []tailcfg.StableNodeID `json:"former,omitempty"`
	// Recent are the peers with a WireGuard session: they are greeted
	// first after a restart.
	Recent []tailcfg.StableNodeID `json:"recent,omitempty"`
	// Retried is set if the pod had another sandbox before this one.
	Retried bool `json:"retried,omitempty"`
	// Forgotten is set once the pod is gone for good: all that is left to
	// do is to leave the tailnet.
	Forgotten bool `json:"forgotten,omitempty"`
}

// newSecrets gives a new record what a node keeps for life, and returns an
// error only if the machine has no randomness.
func (r *record) newSecrets() (err error) {
	if !r.LogID.IsZero() {
		return nil
	}
	if r.LogID, err = logid.NewPrivateID(); err != nil {
		return fmt.Errorf("making a log ID: %w", err)
	}
	r.DiscoKey = make([]byte, discoKeyLen)
	if _, err = rand.Read(r.DiscoKey); err != nil {
		return fmt.Errorf("making a disco key: %w", err)
	}
	return nil
}

const discoKeyLen = 32

// discoKey returns the zero key, which lets the engine make one, where the
// record has none.
func (r *record) discoKey() key.DiscoPrivate {
	if len(r.DiscoKey) != discoKeyLen {
		return key.DiscoPrivate{}
	}
	return key.DiscoPrivateFromRaw32(mem.B(r.DiscoKey))
}

// validUID is what may name a directory. Kubernetes' UIDs are UUIDs; those of
// static pods are hashes.
var validUID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// save writes the record to dir, which it creates if need be, whole or not at
// all. It does not wait for the disk: it is called in hooks, and a slow disk
// would hold up every pod of the machine.
func (r *record) save(dir string) error {
	r.Version = recordVersion
	data, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return fmt.Errorf("encoding %s: %w", recordFile, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("creating the pod's state directory: %w", err)
	}
	if err := replaceFile(filepath.Join(dir, recordFile), data); err != nil {
		return fmt.Errorf("writing the pod's record: %w", err)
	}
	return nil
}

// replaceFile writes a file, 0600, under another name first.
func replaceFile(path string, data []byte) error {
	next := path + ".new"
	if err := os.WriteFile(next, data, 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}

func loadRecord(dir string) (record, error) {
	var r record
	data, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err != nil {
		return r, fmt.Errorf("reading the pod's record: %w", err)
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("%s is damaged: %w", filepath.Join(dir, recordFile), err)
	}
	if r.Version != recordVersion {
		return r, fmt.Errorf("%s has version %d, want %d", filepath.Join(dir, recordFile), r.Version, recordVersion)
	}
	if r.Pod.UID != filepath.Base(dir) {
		return r, fmt.Errorf("%s is of pod %q", filepath.Join(dir, recordFile), r.Pod.UID)
	}
	return r, nil
}

// loadRecords returns the records below stateDir by directory. One that
// cannot be read is reported by bad and set aside: it keeps no other pod from
// its node. A directory without a record is one that was being made or
// removed: there was no device yet, or none any more.
func loadRecords(stateDir string, bad func(dir string, err error)) (map[string]record, error) {
	entries, err := os.ReadDir(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the state directory: %w", err)
	}
	records := map[string]record{}
	for _, entry := range entries {
		dir := filepath.Join(stateDir, entry.Name())
		if !entry.IsDir() || !validUID.MatchString(entry.Name()) || filepath.Ext(dir) == ".damaged" {
			continue
		}
		r, err := loadRecord(dir)
		switch {
		case err == nil:
			records[dir] = r
			continue
		case errors.Is(err, fs.ErrNotExist):
			if err := os.RemoveAll(dir); err != nil {
				return nil, fmt.Errorf("removing the rest of a pod's state: %w", err)
			}
			continue
		}
		if renameErr := os.Rename(dir, dir+".damaged"); renameErr != nil {
			err = errors.Join(err, fmt.Errorf("setting it aside: %w", renameErr))
		}
		bad(dir, err)
	}
	return records, nil
}
