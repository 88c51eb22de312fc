// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/tstime"
	"tailscale.com/types/logid"

	"tailscale-nri/engine/internal/podstate"
	"tailscale-nri/engine/tailnet"
)

// A state directory may be a copy: of a virtual machine that was cloned, of a
// backup that was restored. Its devices are then nodes that run on another
// host, and nothing on the disk tells, since a copy has all of it. So a record
// names the host, in one of its boots, that last served the node. A record that
// names this host and boot is not a copy. For any other the tailnet is asked whether the
// device is connected, before the device is deleted and before its keys are used.
//
// A host that has just rebooted may look connected for a while. Its pods do not
// wait for that: see served. A deletion does, for copyPatience.
const (
	// copyPatience is longer than a control plane may take a host for connected
	// that has lost its power: see served.
	copyPatience = 20 * time.Minute
	copyPause    = 5 * time.Second // to the second look; doubled, up to a minute
	// copySettled is how long a device must not have been seen for one look to
	// settle that it is not connected.
	copySettled = 2 * time.Minute
	// copyAsk bounds one look where a node waits for it to come up.
	copyAsk = 3 * time.Second
)

// presence says whether a device is connected.
type presence int

const (
	presenceUnknown presence = iota
	absent
	seenLately // and to be looked at again
	connected
)

// errElsewhere says that the node's device is another host's, or may be.
var errElsewhere = errors.New("the device is connected from another host")

// isForeign reports whether the record may be a copy of another host's.
func (n *node) isForeign() bool {
	n.op.Lock()
	defer n.op.Unlock()
	return n.disk.foreign
}

// cameBack reports whether the control plane has let the node in, with the keys of
// a host that has been rebooted since: they are not a copy.
func (n *node) cameBack() bool {
	n.op.Lock()
	defer n.op.Unlock()
	return n.disk.admitted && n.e.cameBack()
}

// servedHere notes that this host serves the node. n.op is held.
func (n *node) servedHere() {
	n.disk.foreign = false
	n.rec.HostBoot = n.e.hostBoot
}

// checkIdentity makes sure that this host may use the node's keys. If another host
// uses them now, they are set aside and the node gets others. Where that cannot be
// known, and after a reboot, the keys are used.
func (n *node) checkIdentity(ctx context.Context) error {
	r := n.record()
	if slices.Contains(r.Elsewhere, r.NodeID) {
		return n.startAfresh(nil) // an earlier process was ended before it had done so
	}
	if !n.firstLook() {
		return nil
	}
	devices, seen, err := n.lookBriefly(ctx, r)
	if seen >= seenLately && !n.e.cameBack() {
		if !tstime.Sleep(ctx, cmp.Or(n.e.cfg.copyPause, copyPause)) {
			return ctx.Err()
		}
		devices, seen, err = n.lookBriefly(ctx, r)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case seen == presenceUnknown:
		n.log().Debug("cannot tell whether another host runs this node: its keys are used", "err", err)
	case seen == connected && !n.e.cameBack():
		return n.startAfresh(devices)
	case seen == connected:
		n.log().Warn("the node's device was connected before this host has used its keys: the host has just rebooted, or its state is a copy of another host's",
			"nodeID", r.NodeID, "remedy", "nothing after a reboot; "+n.e.copyRemedy())
	case seen == seenLately && !n.e.cameBack():
		// Its keys are used; before it is deleted, it is looked at again.
	default:
		n.op.Lock()
		defer n.op.Unlock()
		if !n.disk.retired {
			n.servedHere()
			n.keep()
		}
	}
	return nil
}

// lookBriefly asks once, in a time for which a pod may wait, whether one of the
// devices that the node has been is connected.
func (n *node) lookBriefly(ctx context.Context, r record) ([]tailcfg.StableNodeID, presence, error) {
	ctx, cancel := context.WithTimeout(ctx, copyAsk)
	defer cancel()
	devices, now, err := n.look(ctx, r)
	if err != nil {
		return nil, presenceUnknown, err
	}
	return devices, n.e.settle(now, nil), nil
}

// firstLook reports whether the node's device is to be looked at before it is
// served: afterwards it is connected because of this process.
func (n *node) firstLook() bool {
	n.op.Lock()
	defer n.op.Unlock()
	return n.disk.firstLook(&n.rec, n.rec.NetNS.Check)
}

// whereabouts returns nil if none of the devices that the node has been is
// connected, and errElsewhere if one still is after some time, which it waits for.
// A device that was seen a moment ago is looked at again, until that was
// copySettled ago. Any other error says why it cannot be known.
func (n *node) whereabouts(ctx context.Context, r record) error {
	deadline := time.Now().Add(cmp.Or(n.e.cfg.copyPatience, copyPatience))
	pause := cmp.Or(n.e.cfg.copyPause, copyPause)
	var before map[tailcfg.StableNodeID]sighting
	for {
		_, now, err := n.look(ctx, r)
		if err != nil {
			return err
		}
		verdict := n.e.settle(now, before)
		late := time.Now().After(deadline)
		switch {
		case verdict == absent, verdict == presenceUnknown && n.cameBack():
			return nil
		case verdict == connected && late:
			return errElsewhere
		case verdict == presenceUnknown && late:
			return errNobodySees
		}
		n.waitsForOther(verdict, deadline)
		if !tstime.Sleep(ctx, pause/2+rand.N(pause)) {
			return ctx.Err()
		}
		pause, before = min(2*pause, time.Minute), now
	}
}

// errNobodySees says that, with a static key, it cannot be known.
var errNobodySees = errors.New("whether another host uses this device is not known: a static auth key cannot ask the API, and no node of this host has it as a peer")

// sighting is one look at a device.
type sighting struct {
	presence
	lastSeen time.Time
}

// settle is the verdict over all devices: the worst.
func (e *Engine) settle(now, before map[tailcfg.StableNodeID]sighting) presence {
	verdict := absent
	for id, d := range now {
		was := before[id]
		again := was.presence == absent && was.lastSeen.Equal(d.lastSeen)
		switch {
		case d.presence == presenceUnknown:
			return presenceUnknown
		case d.presence == connected, was.presence == absent && !again:
			verdict = connected
		case time.Since(d.lastSeen) < cmp.Or(e.cfg.copySettled, copySettled):
			verdict = max(verdict, seenLately)
		}
	}
	return verdict
}

// look asks the tailnet for all devices that the node has been.
func (n *node) look(ctx context.Context, r record) ([]tailcfg.StableNodeID, map[tailcfg.StableNodeID]sighting, error) {
	ids, stored, err := n.recordedDevices(r)
	if err != nil {
		return nil, nil, err
	}
	api := n.tailnet().api
	if api == nil {
		ids, now := n.lookAtPeers(ids, stored)
		return ids, now, nil
	}
	if ids, err = n.listedDevices(ctx, api, r, ids, stored); err != nil {
		return nil, nil, err
	}
	now := map[tailcfg.StableNodeID]sighting{}
	for _, id := range ids {
		d, err := api.Device(ctx, string(id))
		switch {
		case errors.Is(err, tailnet.ErrNoDevice):
		case err != nil:
			return nil, nil, err
		case isConnected(d):
			now[id] = sighting{presence: connected}
		default:
			now[id] = sighting{absent, d.LastSeen}
		}
	}
	return ids, now, nil
}

// isConnected reports whether a device is connected, or may be: Tailscale says
// so, Headscale leaves out when it was last seen.
func isConnected(d tailnet.Device) bool { return d.Connected || d.LastSeen.IsZero() }

// lookAtPeers is look without an API.
func (n *node) lookAtPeers(ids []tailcfg.StableNodeID, stored podstate.Keys) ([]tailcfg.StableNodeID, map[tailcfg.StableNodeID]sighting) {
	if !stored.Machine.IsZero() { // one that has registered is not known by its ID
		return nil, map[tailcfg.StableNodeID]sighting{"": {}}
	}
	now := map[tailcfg.StableNodeID]sighting{}
	for _, id := range ids {
		now[id] = n.seenByPeers(id)
	}
	return ids, now
}

// seenByPeers is what the control plane tells this host's other nodes in the same
// tailnet about a device: all that can be known without an API.
func (n *node) seenByPeers(id tailcfg.StableNodeID) sighting {
	for _, peer := range n.e.snapshot() {
		s := peer.runningSession()
		if s == nil || peer.profile() != n.profile() {
			continue
		}
		nm := s.b.NetMapWithPeers()
		if nm == nil || nm.Cached {
			continue
		}
		for _, p := range nm.Peers {
			if p.StableID() != id {
				continue
			}
			if online, ok := p.Online().GetOk(); ok {
				if online {
					return sighting{presence: connected}
				}
				return sighting{absent, p.LastSeen().Get()}
			}
		}
	}
	return sighting{}
}

// waitsForOther says why the node does nothing yet.
func (n *node) waitsForOther(p presence, deadline time.Time) {
	var why string
	switch p {
	case connected:
		why = "the tailnet says that its device is connected: this host has just rebooted, or its state is a copy of another host's"
	case presenceUnknown:
		why = "whether its device is connected from another host is not known yet"
	default:
		why = "its device was seen a moment ago, and not by this process"
	}
	if p != seenLately {
		why += "; looking again until " + deadline.Format(time.TimeOnly)
	}
	n.setReason(why)
	n.warnOnce("waiting to delete the device", why)
}

// copyRemedy says what to do about a state that another host uses.
func (e *Engine) copyRemedy() string {
	return "give a copy of a host an empty " + e.cfg.Names.StateDir + "; if this is not a copy, delete the device by hand"
}

// startAfresh sets the node's keys aside, which another host uses, and makes
// the node one that has never been in the tailnet. The record says so first:
// nothing that it then names is ever deleted.
func (n *node) startAfresh(devices []tailcfg.StableNodeID) error {
	n.update(func(r *record) { r.Elsewhere = append(r.Elsewhere, devices...) })
	var aside string
	err := n.e.take(stepState, func() (err error) {
		aside, err = podstate.SetCopyAside(n.statePath())
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("setting aside keys that another host uses: %w", podstate.Remedy(err))
	}
	n.log().Error("this looks like a copy of another host's state: its device is connected from there and is left alone, the pod gets one of its own",
		"nodeID", n.record().NodeID, "keys", aside, "remedy", n.e.copyRemedy())
	n.op.Lock()
	defer n.op.Unlock()
	if n.disk.retired {
		return nil
	}
	r := &n.rec
	r.NodeID, r.Registering, r.Former, r.Recent = "", false, nil, nil
	r.Port, r.DiscoKey, r.LogID = 0, nil, logid.PrivateID{}
	if err := r.NewSecrets(); err != nil {
		return err
	}
	n.servedHere()
	n.keep()
	n.setNodeID("")
	return nil
}

// letAlone sets the state of a node aside whose device is another host's, or
// may be, unless its pod came back at the last moment.
func (n *node) letAlone(ctx context.Context, why error) error {
	n.op.Lock()
	defer n.op.Unlock()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var aside string
	err := n.e.take(stepRetire, func() (err error) {
		aside, err = podstate.SetCopyAside(n.dir)
		return err
	})
	if err != nil {
		return fmt.Errorf("setting aside the state of a node that another host runs: %w", podstate.Remedy(err))
	}
	n.disk.retired = true
	n.e.noteElsewhere(n.rec)
	n.e.drop(n)
	text := "this looks like a copy of another host's state: the device is left alone"
	if !errors.Is(why, errElsewhere) {
		text = "the device is left alone: its node ran before this host's boot, or on the host that this state is a copy of"
	}
	n.log().Error(text, "reason", why, "nodeID", n.rec.NodeID, "state", aside, "remedy", n.e.copyRemedy())
	return nil
}

// noteElsewhere keeps in mind which devices are another host's: their names
// are not taken and they are not swept.
func (e *Engine) noteElsewhere(r record) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, id := range slices.Concat([]tailcfg.StableNodeID{r.NodeID}, r.Former, r.Elsewhere) {
		if id != "" {
			e.elsewhere[string(id)] = true
		}
	}
}

// isElsewhere reports whether a device is of a state that was set aside as a
// copy.
func (e *Engine) isElsewhere(id string) bool {
	for _, n := range e.snapshot() {
		if slices.Contains(n.record().Elsewhere, tailcfg.StableNodeID(id)) {
			return true
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.elsewhere[id]
}
