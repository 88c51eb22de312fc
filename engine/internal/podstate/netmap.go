// SPDX-License-Identifier: BSD-3-Clause

package podstate

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"tailscale.com/ipn/ipnlocal/netmapcache"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// The last netmap of each node is kept on disk. A new process starts from it, without
// waiting for the control plane's answer, and also while the control plane is away.
// tailscale.com has a cache for this and reads it at each start. But it writes the cache
// only for tailnets whose policy says so, and empties it otherwise
// (ipn/ipnlocal/local.go, setNetMapLocked). So there is a cache of the same form next to
// it, which is lent to the backend.

// NetmapDir is the name of the directory in the pod's.
const NetmapDir = "netmap"

// NetmapStore is a netmapcache.Store in a pod's directory. A file is replaced
// whole or not at all.
type NetmapStore struct {
	netmapcache.FileStore
	take    Take
	written func(bytes int)
}

// NewNetmapStore returns the store in a pod's directory. Every change goes through
// take, and written is called with the size of each value that is written.
func NewNetmapStore(dir string, take Take, written func(bytes int)) NetmapStore {
	return NetmapStore{netmapcache.FileStore(filepath.Join(dir, NetmapDir)), take, written}
}

// MakeNetmapDir makes the directory of the store in a pod's, without which it stores
// nothing.
func MakeNetmapDir(dir string) error { return os.MkdirAll(filepath.Join(dir, NetmapDir), 0o700) }

// Store implements netmapcache.Store. What is on disk already is not written
// again: after a restart that is nearly all.
func (s NetmapStore) Store(_ context.Context, key string, value []byte) error {
	path := filepath.Join(string(s.FileStore), hex.EncodeToString([]byte(key)))
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, value) {
		return nil
	}
	err := s.take(func() error {
		next := string(s.FileStore) + ".new" // not a name that the cache would list
		if err := os.WriteFile(next, value, 0o600); err != nil {
			return err
		}
		return os.Rename(next, path)
	})
	if err == nil {
		s.written(len(value))
	}
	return err
}

// Remove implements netmapcache.Store.
func (s NetmapStore) Remove(ctx context.Context, key string) error {
	return s.take(func() error { return s.FileStore.Remove(ctx, key) })
}

// backendCache is where a backend looks for its netmap below its profile's directory
// (ipn/ipnlocal/local.go, setNetMapLocked).
const backendCache = "netmap-cache"

// LendNetmap gives a backend the last netmap, if it is that of the node with the key.
// profileDir is the directory of the backend's profile. The netmap is lent by links,
// which ReclaimNetmap takes back as soon as the backend has read it: if the
// tailnet's policy has it write a cache, it would write into this one.
func LendNetmap(dir, profileDir string, nodeKey key.NodePublic) error {
	from, to := filepath.Join(dir, NetmapDir), filepath.Join(profileDir, backendCache)
	if err := os.RemoveAll(to); err != nil {
		return fmt.Errorf("emptying the backend's netmap: %w", err)
	}
	switch owner, err := NetmapOwner(from); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil || owner != nodeKey:
		// Another node's, such as this one before it registered again.
		return os.RemoveAll(from)
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Link(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// ReclaimNetmap takes back what was lent to any profile below the directory of the
// backend's profiles. bad hears of each file that stays.
func ReclaimNetmap(profilesDir string, bad func(error)) {
	lent, _ := filepath.Glob(filepath.Join(profilesDir, "*", backendCache, "*")) // the pattern is a good one
	for _, path := range lent {
		if err := os.Remove(path); err != nil {
			bad(err)
		}
	}
}

// NetmapOwner returns the key of the node whose netmap is in dir
// (ipn/ipnlocal/netmapcache/types.go, netmapNode).
func NetmapOwner(dir string) (key.NodePublic, error) {
	data, err := netmapcache.FileStore(dir).Load(context.Background(), "self")
	if errors.Is(err, netmapcache.ErrKeyNotFound) {
		return key.NodePublic{}, fs.ErrNotExist
	}
	var self struct{ Node tailcfg.Node }
	if err == nil {
		err = json.Unmarshal(data, &self)
	}
	return self.Node.Key, err
}
