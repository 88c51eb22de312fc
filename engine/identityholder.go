// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/tstime"

	"tailscale-nri/engine/internal/podnet"
	"tailscale-nri/engine/internal/podstate"
	"tailscale-nri/engine/measure"
)

// takenError is the error of a node that no longer holds its identity.
type takenError struct{ by Holder }

func (e *takenError) Error() string {
	if e.by == (Holder{}) {
		return "its identity was given back or deleted: it is taken again"
	}
	return fmt.Sprintf("its identity was taken by pod %s on host %s, since this host had not renewed it in time", e.by.PodUID, e.by.Host)
}

// holdIdentity makes a workload's node the holder of its identity. It waits while another
// holder has it. Afterwards the keys on disk are the node's own. If the pod no longer asks
// for its workload's identity, it gives that back. For any other node it does nothing.
func (n *node) holdIdentity(ctx context.Context) error {
	r := n.record()
	if !r.Pod.Features.Workload {
		if r.Generation == 0 && r.NodeID != "" || !n.hasWorkloads(r) {
			return nil
		}
		return n.releaseIdentity(ctx) // the pod's annotation was removed: it gets a device of its own
	}
	if n.e.cfg.Identities == nil {
		return errors.New("the pod's device goes with its workload, and identities are not kept: set " + n.e.cfg.Names.Identities)
	}
	k, err := podstate.StoredKeys(n.statePath())
	if err != nil && !errors.Is(err, podstate.ErrDamaged) {
		return err
	}
	if err != nil || k.Node.IsZero() || r.Generation == 0 || n.isForeign() || n.loginNeeded() {
		return n.takeIdentity(ctx)
	}
	if !r.Rekeyed {
		return nil // whether it is still this node's, the control plane says
	}
	err = n.renewIdentity(ctx)
	if isTaken(err) {
		return n.takeIdentity(ctx)
	}
	return err
}

func isTaken(err error) bool {
	var taken *takenError
	return errors.As(err, &taken)
}

// holder returns this pod on this host.
func (n *node) holder() Holder { return Holder{n.e.cfg.Host, n.uid} }

// takeIdentity makes the node the holder as soon as there is no other.
func (n *node) takeIdentity(ctx context.Context) error {
	key := keyOf(n.record().Pod)
	n.serving.hasReturned() // the store or another holder may take long, and nobody waits for that
	n.e.returning.wait(ctx, returnPatience)
	for {
		if err := n.record().NetNS.Check(); errors.Is(err, podnet.ErrGone) {
			return err // the pod is gone: its record is from before a reboot, or in a copy of the state directory
		}
		id, err := n.e.cfg.Identities.Load(ctx, key)
		if errors.Is(err, ErrNoIdentity) {
			id, err = Identity{}, nil
		}
		if err != nil {
			return fmt.Errorf("reading the stored identity of the workload: %w", err)
		}
		if whom, until := n.mustWait(id); whom != "" {
			n.setState(Pending, whom+until)
			n.warnOnce("waiting for the workload's identity", whom)
			n.tellDown(whom)
			if pause := n.e.cfg.waitEvery; !tstime.Sleep(ctx, pause*9/10+rand.N(pause/5)) {
				return ctx.Err()
			}
			continue
		}
		id, err = n.storeHolder(ctx, key, id)
		switch {
		case errors.Is(err, ErrIdentityChanged):
			if !tstime.Sleep(ctx, rand.N(n.e.cfg.waitEvery)/10) {
				return ctx.Err()
			}
		case err != nil:
			return fmt.Errorf("taking the workload's identity: %w", err)
		default:
			return n.installKeys(id)
		}
	}
}

// mustWait returns which holder has to be waited for, "" if there is none, and until when.
// The second changes with each renewal. Both are parts of a reason.
func (n *node) mustWait(id Identity) (whom, until string) {
	switch id.Holder {
	case Holder{}, n.holder():
		return "", ""
	}
	if id.Holder.Host == n.e.cfg.Host {
		// Which of this host's pods are served, this process knows.
		if other := n.e.nodeOfUID(id.Holder.PodUID); other != nil && other.runningSession() != nil {
			return "waits for pod " + id.Holder.PodUID + " of this host, which has this identity", " until it ends"
		}
		return "", ""
	}
	ends := n.lease.noteOther(id.Version, time.Now()).Add(n.e.cfg.leaseTime)
	if time.Until(ends) <= 0 {
		return "", ""
	}
	return fmt.Sprintf("waits for host %s, which has this identity", id.Holder.Host),
		fmt.Sprintf(" until %s, or for longer if it renews it", ends.Format(time.TimeOnly))
}

// storeHolder stores this pod as the holder, with a new node key.
func (n *node) storeHolder(ctx context.Context, key WorkloadKey, id Identity) (Identity, error) {
	state, err := podstate.Rekey(id.State, id.Registered, n.lockKey)
	if errors.Is(err, podstate.ErrDamaged) {
		n.log().Error("the identity's keys are damaged: the workload gets a new device, delete the old one by hand", "err", err, "nodeID", id.NodeID)
		id.NodeID = ""
		state, err = podstate.Rekey(nil, false, n.lockKey)
	}
	if err != nil {
		return id, err
	}
	from := id.Holder
	id.Generation++
	id.Holder, id.LastUsed, id.Registered, id.State = n.holder(), time.Now(), false, state
	if id.Version, err = n.e.cfg.Identities.Save(ctx, key, id); err == nil {
		n.log().Info("took the workload's identity", "nodeID", id.NodeID, "generation", id.Generation, "from", from.Host)
	}
	return id, err
}

// installKeys writes the keys of an identity that was just taken to where the backend
// finds them, and then the record. In this order no record names a generation whose keys
// are not on disk.
func (n *node) installKeys(id Identity) error {
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return podstate.Remedy(err)
	}
	if err := n.e.take(stepState, func() error { return podstate.ReplaceFile(n.statePath(), id.State) }); err != nil {
		return fmt.Errorf("writing the workload's keys: %w", podstate.Remedy(err))
	}
	n.written.add(measure.StateFile, len(id.State))
	n.update(func(r *record) {
		if r.Generation == 0 && r.NodeID != "" && r.NodeID != id.NodeID && !slices.Contains(r.Former, r.NodeID) {
			r.Former = append(r.Former, r.NodeID) // the device that the pod had before it asked for its workload's
		}
		r.Generation, r.Rekeyed, r.NodeID = id.Generation, true, id.NodeID
		n.servedHere()
	})
	n.lease.begin(id.Version)
	n.setLoggedIn(string(id.NodeID))
	return nil
}

// renewIdentity stores that the node still holds its identity, and the latest keys and
// device ID. It returns a *takenError if the node does not hold it any more.
func (n *node) renewIdentity(ctx context.Context) error {
	err := n.renewOnce(ctx)
	if errors.Is(err, ErrIdentityChanged) {
		err = n.renewOnce(ctx) // by this node, in a request whose answer was lost, or by another host: renewOnce looks now
	}
	n.lease.noteRenewal(err)
	return err
}

func (n *node) renewOnce(ctx context.Context) error {
	r := n.record()
	key := keyOf(r.Pod)
	version := n.lease.storedVersion()
	if version == "" {
		id, err := n.e.cfg.Identities.Load(ctx, key)
		switch {
		case errors.Is(err, ErrNoIdentity): // deleted by hand while in use: stored again
		case err != nil:
			return fmt.Errorf("reading the stored identity of the workload: %w", err)
		case !n.holds(id, r):
			return &takenError{id.Holder}
		}
		version = id.Version
	}
	id, err := n.identity(r)
	if err != nil {
		return err
	}
	id.Version, id.Holder = version, n.holder()
	version, err = n.e.cfg.Identities.Save(ctx, key, id)
	if err != nil {
		version = "" // it may have been stored
	}
	n.lease.setVersion(version)
	if err != nil {
		return fmt.Errorf("renewing the workload's identity: %w", err)
	}
	return nil
}

// holds reports whether the node is the holder of a stored identity.
func (n *node) holds(id Identity, r record) bool {
	return id.Holder == n.holder() && id.Generation == r.Generation
}

// identity returns what is to be stored of the node, without a holder.
func (n *node) identity(r record) (Identity, error) {
	state, err := os.ReadFile(n.statePath())
	if err == nil {
		_, err = podstate.ParseKeys(state)
	}
	if err != nil {
		return Identity{}, fmt.Errorf("reading the node's keys, to store them for its workload: %w", err)
	}
	return Identity{Generation: r.Generation, LastUsed: time.Now(), NodeID: r.NodeID, Registered: !r.Rekeyed, State: bytes.TrimSpace(state)}, nil
}

// keepIdentity renews the identity until ctx is done, and at once when due says that
// the device or its keys have changed. If another host has taken the identity, it sends
// the error to taken and ends.
func (n *node) keepIdentity(ctx context.Context, due <-chan struct{}, taken chan<- error) {
	for {
		pause := n.e.cfg.renewEvery
		timer := time.NewTimer(pause*9/10 + rand.N(pause/5))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-due:
			timer.Stop()
		case <-timer.C:
		}
		err := n.renewIdentity(ctx)
		if isTaken(err) {
			taken <- err
			return
		}
	}
}

// identityTrouble returns why the identity could not be renewed, "" if it was renewed.
func (n *node) identityTrouble() string {
	if why := n.lease.whyNotRenewed(); why != "" {
		return "another host may take this workload's device: " + why
	}
	return ""
}

// dropIdentity notes in the record that the keys on disk must not be used any more.
func (n *node) dropIdentity() {
	n.update(func(r *record) { r.Generation, r.Rekeyed, r.Registering, r.NodeID = 0, false, false, "" })
	n.lease.begin("")
}

// hasWorkloads reports whether the keys on disk are a workload's. If the record does not
// say so, because it was lost or another version wrote it, the keys are marked themselves.
func (n *node) hasWorkloads(r record) bool {
	if r.Generation != 0 {
		return true
	}
	k, err := podstate.StoredKeys(n.statePath())
	return err == nil && k.Workload
}

// releaseIdentity gives the identity back, so that the next host can take it at once, and
// removes the keys from this host. The node must not be served. It does nothing if the
// node does not hold the identity, and returns an error if that is not known.
func (n *node) releaseIdentity(ctx context.Context) error {
	r := n.record()
	if !n.hasWorkloads(r) {
		return nil
	}
	key := keyOf(r.Pod)
	// An identity that was held before this host's last boot, or by the host of which this
	// one is a copy, is not given back: its lease runs out.
	for r.Generation != 0 && !n.isForeign() && n.e.cfg.Identities != nil {
		id, err := n.e.cfg.Identities.Load(ctx, key)
		if errors.Is(err, ErrNoIdentity) || err == nil && !n.holds(id, r) {
			break
		}
		if err != nil {
			return fmt.Errorf("giving the workload's identity back: %w", err)
		}
		if latest, err := n.identity(r); err == nil {
			latest.Version = id.Version
			id = latest
		}
		id.Holder = Holder{}
		_, err = n.e.cfg.Identities.Save(ctx, key, id)
		if errors.Is(err, ErrIdentityChanged) && tstime.Sleep(ctx, rand.N(n.e.cfg.waitEvery)/10) {
			continue
		}
		if err != nil {
			return fmt.Errorf("giving the workload's identity back: %w", err)
		}
		n.log().Info("gave the workload's identity back", "nodeID", id.NodeID, "generation", id.Generation)
		break
	}
	n.dropIdentity()
	return n.e.take(stepWipe, func() error {
		err := os.Remove(n.statePath())
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return errors.Join(err, os.RemoveAll(filepath.Join(n.dir, podstate.NetmapDir)))
	})
}

// releaseLater gives back the identity of a pod whose sandbox has ended. It tries for as
// long as the lease lasts: after that another host can take the identity anyway.
func (n *node) releaseLater(ctx context.Context) {
	if n.record().Generation == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, n.e.cfg.leaseTime)
	defer cancel()
	for pause := newBackoff(); ; {
		err := n.releaseIdentity(ctx)
		if err == nil {
			return
		}
		n.warnOnce("the next host has to wait for the workload's identity", err.Error())
		if !tstime.Sleep(ctx, pause.next()) {
			return
		}
	}
}

// leaveIdentity is the end of a pod whose device is its workload's. That device stays;
// the devices that the pod had before are deleted.
func (n *node) leaveIdentity(ctx context.Context, r record) error {
	if err := n.releaseIdentity(ctx); err != nil {
		return err
	}
	if n.isForeign() || n.isMoved(r) {
		return nil
	}
	api := n.tailnet().api
	if api == nil {
		return nil
	}
	return n.deleteDevices(ctx, api, slices.DeleteFunc(slices.Clone(r.Former), func(id tailcfg.StableNodeID) bool {
		return id == r.NodeID || slices.Contains(r.Elsewhere, id)
	}))
}
