// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"tailscale.com/tstime"

	"tailscale-nri/engine/internal/podstate"
)

// record is a node's record on disk.
type record = podstate.Record

// keep writes the record, now or as soon as it can be written. n.op is held.
func (n *node) keep() {
	was := n.disk.unsaved
	if n.trySave(); was == "" && n.disk.unsaved != "" {
		n.e.spawn(n.keepTrying)
	}
}

// trySave writes the record, and logs a failure once. n.op is held.
func (n *node) trySave() {
	err := n.save()
	switch {
	case err == nil:
		if n.disk.unsaved != "" {
			n.log().Info("the node's record is up to date on disk again")
		}
		n.disk.unsaved = ""
	case err.Error() != n.disk.unsaved:
		n.disk.unsaved = err.Error()
		n.log().Error("the node's record on disk is not up to date, trying again; the node goes on", "err", err)
	}
}

// keepTrying writes the record once it can be written.
func (n *node) keepTrying() {
	again := func() bool {
		n.op.Lock()
		defer n.op.Unlock()
		if !n.disk.retired && n.disk.unsaved != "" {
			n.trySave()
		}
		return !n.disk.retired && n.disk.unsaved != ""
	}
	for pause := newBackoff(); tstime.Sleep(n.e.ctx, pause.next()) && again(); {
	}
}

// checkRoom refuses a new node whose directory is there: it holds the keys of a
// node of the same pod, and could not be used.
func (n *node) checkRoom() error {
	if !n.disk.fresh {
		return nil
	}
	_, err := os.Lstat(n.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("looking for the pod's state: %w", err)
	}
	return fmt.Errorf("%s belongs to this pod and could not be used when this process started, see its log: repair it or move it away, and restart tailscale-nri", n.dir)
}

// repairState sets the node's state aside if no backend could use it. If the node's key
// is lost, it notes in the record that the node is to register again: its device is then
// one of its former devices, which are deleted later. It reports whether the node has a
// key.
func (n *node) repairState() (keyed bool, err error) {
	r := n.record()
	k, err := podstate.StoredKeys(n.statePath())
	switch {
	case err == nil && (!k.Node.IsZero() || r.NodeID == "" || r.Forgotten):
		return !k.Node.IsZero(), nil
	case err == nil:
		err = fmt.Errorf("%s holds no node key", n.statePath())
	case !errors.Is(err, podstate.ErrDamaged):
		return false, err
	}
	var aside string
	asideErr := n.e.take(stepState, func() (err error) {
		aside, err = podstate.SetAside(n.statePath())
		return err
	})
	switch {
	case asideErr == nil:
		err = fmt.Errorf("%w; it was set aside as %s", err, aside)
	case !errors.Is(asideErr, fs.ErrNotExist):
		return false, fmt.Errorf("%w; setting it aside: %w", err, podstate.Remedy(asideErr))
	}
	if r.NodeID == "" {
		n.log().Error("the node's key is lost, the node gets a new one; which device it was is not known here", "err", err)
		return false, nil
	}
	n.log().Error("the node's key is lost, the node registers again; its device is deleted with the pod at the latest",
		"err", err, "nodeID", r.NodeID)
	n.update(func(r *record) {
		if !slices.Contains(r.Former, r.NodeID) {
			r.Former = append(r.Former, r.NodeID)
		}
		r.NodeID = ""
	})
	n.setNodeID("")
	return false, nil
}

func (n *node) resolvConfPath() string { return filepath.Join(n.dir, podstate.ResolvConfFile) }
