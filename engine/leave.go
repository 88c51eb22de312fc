// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnauth"
	"tailscale.com/tailcfg"
	"tailscale.com/tstime"
	"tailscale.com/types/opt"

	"tailscale-nri/engine/internal/podstate"
	"tailscale-nri/engine/tailnet"
)

// leave makes the node leave the tailnet, and then forgets it: the device
// first, then, once that is done, the state. It tries for as long as it
// takes, over restarts too. If the pod comes back meanwhile, it stops.
func (n *node) leave(ctx context.Context) {
	n.removeLink(n.record().Link)
	n.setState(Leaving, "")
	n.logState(Leaving, "leaving the tailnet")
	n.tellEnd(NewsLeft)
	for pause := newBackoff(); ; {
		err := n.leaveOnce(ctx)
		if err == nil {
			n.retireAfter(ctx)
			return
		}
		if errors.Is(err, errElsewhere) || errors.Is(err, errNobodySees) {
			err = n.letAlone(ctx, err)
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		n.setState(Leaving, err.Error())
		n.warnOnce("leaving the tailnet, trying again", err.Error())
		if !tstime.Sleep(ctx, pause.next()) {
			return
		}
	}
}

// leaveOnce deletes every device that the node has had, or logs it out where
// devices cannot be deleted.
func (n *node) leaveOnce(ctx context.Context) error {
	if r := n.record(); n.hasWorkloads(r) {
		return n.leaveIdentity(ctx, r)
	}
	if _, err := n.repairState(); err != nil {
		return err
	}
	r := n.record()
	if n.isForeign() {
		if err := n.whereabouts(ctx, r); err != nil {
			return err
		}
	}
	devices, stored, err := n.recordedDevices(r)
	if err != nil {
		return err
	}
	api := n.tailnet().api
	if api == nil {
		if len(devices) == 0 && stored.Machine.IsZero() {
			return nil
		}
		return n.logOut(ctx, r)
	}
	if devices, err = n.listedDevices(ctx, api, r, devices, stored); err != nil {
		return err
	}
	return n.deleteDevices(ctx, api, devices)
}

func (n *node) deleteDevices(ctx context.Context, api tailnet.DeviceAPI, devices []tailcfg.StableNodeID) error {
	for _, id := range devices {
		if err := countDelete(api.Delete(ctx, string(id)), &n.e.tally.podEnded); err != nil {
			return err // which names the device
		}
		n.log().Info("device deleted", "nodeID", id)
	}
	return nil
}

// recordedDevices returns the IDs of the devices that the node has been, as far as its
// record has them, but for those that are another host's. Where it may have been
// others, stored are the keys by which the tailnet has them.
func (n *node) recordedDevices(r record) (ids []tailcfg.StableNodeID, stored podstate.Keys, err error) {
	moved := n.isMoved(r)
	switch {
	case moved && r.NodeID != "":
		n.warnOnce("its device is on an earlier login server and stays there: delete it by hand",
			fmt.Sprintf("device %s of %s", r.NodeID, r.LoginServer))
	case !moved:
		ids = slices.Clone(r.Former)
		if r.NodeID != "" {
			ids = append(ids, r.NodeID)
		}
		ids = slices.DeleteFunc(ids, func(id tailcfg.StableNodeID) bool { return slices.Contains(r.Elsewhere, id) })
		if !r.Registering {
			return ids, podstate.Keys{}, nil
		}
	}
	// If the answer to a registration was lost, the node's device is known by its keys
	// alone. Keys are also compared if the configuration names another control server by
	// now: that one may have given the same ID to somebody else's device. The node key is
	// not on disk yet if the node was to register again; the machine key is the same in
	// all of them.
	stored, err = podstate.StoredKeys(n.statePath())
	return ids, stored, err
}

// listedDevices adds to the recorded devices those that the API has by the node's keys.
func (n *node) listedDevices(ctx context.Context, api tailnet.DeviceAPI, r record, ids []tailcfg.StableNodeID, stored podstate.Keys) ([]tailcfg.StableNodeID, error) {
	if stored.Machine.IsZero() {
		return ids, nil
	}
	devices, err := api.Devices(ctx)
	if err != nil {
		return nil, fmt.Errorf("finding the node's device: %w", err)
	}
	for _, d := range devices {
		id := tailcfg.StableNodeID(d.ID)
		is := d.MachineKey == stored.Machine || d.NodeKey == stored.Node.String()
		if is && !slices.Contains(ids, id) && !slices.Contains(r.Elsewhere, id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// isMoved reports whether the configuration leads to another login server than the one
// that the record's devices are on: an ID is that server's alone.
func (n *node) isMoved(r record) bool {
	return r.LoginServer != "" && r.LoginServer != n.tailnet().ControlURL()
}

// logOut tells the control plane that the node is gone. It brings up a backend
// without packets for that: the one that ran ended with the pod.
func (n *node) logOut(ctx context.Context, r record) error {
	if r.NodeID == "" && !r.Registering || slices.Contains(r.Elsewhere, r.NodeID) {
		return nil // it never tried to log in, or is another host's
	}
	limit := n.e.cfg.AttachTimeout
	b, err := within(limit, "opening the backend", func() (*backend, error) {
		return n.openBackend(r, podEnd{}, bridge(n.log(), n.chatter, nil))
	}, (*backend).close)
	if err != nil {
		return err
	}
	defer n.closeBackend(b)
	// A backend that syncs would log in while it is logged out, and the two
	// race (control/controlclient/direct.go, doLogin).
	p := n.prefs(r.Pod)
	p.WantRunning, p.Sync = false, opt.NewBool(false)
	if err := withinErr(limit, "starting the backend", func() error {
		return b.Start(ipn.Options{UpdatePrefs: p})
	}); err != nil {
		return fmt.Errorf("starting the backend: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := n.e.take(stepLogOut, func() error { return b.Logout(ctx, ipnauth.Self) }); err != nil {
		return fmt.Errorf("logging out: %w", err)
	}
	n.log().Info("logged out; the tailnet may still list the device", "nodeID", r.NodeID)
	return nil
}

// retireAfter retires the node, unless its pod came back at the last moment.
func (n *node) retireAfter(ctx context.Context) {
	n.op.Lock()
	defer n.op.Unlock()
	if ctx.Err() == nil {
		n.retire()
		n.logState(gone, "node removed")
	}
}

// setDeviceID records which device the node is. It also records which device it was
// before, since a node that had to register again leaves its old device behind. tagged
// says whether it has the tags that its pod asks for.
func (n *node) setDeviceID(id tailcfg.StableNodeID, tagged bool) {
	server := n.tailnet().ControlURL()
	if again := n.setLoggedIn(string(id)); again {
		n.tellAdmitted()
	}
	n.update(func(r *record) {
		n.disk.admitted = true
		n.way.passRegistered()
		if r.Registering {
			n.e.tally.countRegistration(r.NodeID != "")
		}
		if r.LoginServer != "" && r.LoginServer != server && r.NodeID != id {
			if r.NodeID != "" {
				n.log().Warn("another control server has let the node in: its device on the earlier one stays there",
					"nodeID", r.NodeID, "server", r.LoginServer, "remedy", "delete it there by hand")
			}
			r.NodeID, r.Former = "", nil
		}
		if r.NodeID != "" && r.NodeID != id && !slices.Contains(r.Former, r.NodeID) {
			r.Former = append(r.Former, r.NodeID)
		}
		r.NodeID, r.Registering, r.Rekeyed, r.TagsDue = id, false, false, r.TagsDue && !tagged
		r.LoginServer = server
	})
}
