// SPDX-License-Identifier: BSD-3-Clause

package engine

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
	"time"

	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnlocal"
	"tailscale.com/ipn/ipnlocal/netmapcache"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// The last netmap of each node is kept on disk, so that a new process starts
// from it rather than from the control plane's answer, and starts at all while
// there is none. tailscale.com has a cache for this and reads it at each start,
// but it writes it only for tailnets whose policy says so, and empties it
// otherwise (ipn/ipnlocal/local.go, setNetMapLocked). So the engine keeps a
// cache of the same form beside it, and lends it to the backend.

const netmapDir = "netmap"

// netmapPause is the least time between two looks at a netmap that has changed. In
// a busy tailnet it changes all the time, so that the pause is netmapShare times as
// long as the look took if that is longer. When a change is written is up to
// netmapDigest.
const (
	netmapPause = time.Second
	netmapShare = 50
	// netmapAgain is the time to the first write after a start from a netmap.
	netmapAgain = 10 * time.Second
)

// netmapStore is a netmapcache.Store in the node's directory. A file is
// replaced whole or not at all.
type netmapStore struct {
	netmapcache.FileStore
	n *node
}

func (n *node) netmapStore() netmapStore {
	return netmapStore{netmapcache.FileStore(filepath.Join(n.dir, netmapDir)), n}
}

// Store implements netmapcache.Store. What is on disk already is not written
// again: after a restart that is nearly all.
func (s netmapStore) Store(_ context.Context, key string, value []byte) error {
	path := filepath.Join(string(s.FileStore), hex.EncodeToString([]byte(key)))
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, value) {
		return nil
	}
	s.n.serving.netmapBytes.Add(int64(len(value)))
	return s.n.e.take(stepNetmap, func() error {
		next := filepath.Join(s.n.dir, "netmap.new") // not a name that the cache would list
		if err := os.WriteFile(next, value, 0o600); err != nil {
			return err
		}
		return os.Rename(next, path)
	})
}

// Remove implements netmapcache.Store.
func (s netmapStore) Remove(ctx context.Context, key string) error {
	return s.n.e.take(stepNetmap, func() error { return s.FileStore.Remove(ctx, key) })
}

// lendNetmap gives the backend the last netmap, if it is that of the node with
// the key. It is lent by links, which reclaimNetmap takes back as soon as the
// backend has read it: where the tailnet's policy has it write a cache, it
// would write into ours.
func (n *node) lendNetmap(profile ipn.ProfileID, nodeKey key.NodePublic) error {
	from := filepath.Join(n.dir, netmapDir)
	to := filepath.Join(n.dir, ipnlocal.ProfileDataDir, string(profile), "netmap-cache")
	if err := os.RemoveAll(to); err != nil {
		return fmt.Errorf("emptying the backend's netmap: %w", err)
	}
	switch owner, err := netmapOwner(from); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil || owner != nodeKey:
		// Another node's, such as this one before it registered anew.
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

// reclaimNetmap takes back what was lent.
func (n *node) reclaimNetmap() {
	lent, _ := filepath.Glob(filepath.Join(n.dir, ipnlocal.ProfileDataDir, "*", "netmap-cache", "*")) // the pattern is a good one
	for _, path := range lent {
		if err := os.Remove(path); err != nil {
			n.log().Warn("the netmap that was lent to the backend", "err", err)
		}
	}
}

// netmapOwner returns the key of the node whose netmap is in dir
// (ipn/ipnlocal/netmapcache/types.go, netmapNode).
func netmapOwner(dir string) (key.NodePublic, error) {
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
