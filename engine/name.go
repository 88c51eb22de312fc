// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"tailscale.com/tstime"

	"tailscale-nri/engine/tailnet"
)

const (
	// nameTries bounds how often a node asks for its name; with the pauses,
	// 5 s doubled up to nameLongest, that is half an hour.
	nameTries   = 12
	nameShort   = 5 * time.Second
	nameLongest = 5 * time.Minute
	// nameUnseen is how long a pod's earlier device must not have been seen
	// for its name to be taken from it: longer than a restart of its plugin.
	nameUnseen = 2 * time.Minute
)

// keepName gets the node the name it asked for, where the tailnet gave it another, until
// ctx is done or further tries are pointless. The holder is mostly the device of an
// earlier pod of the same name: the kubelet removes a sandbox up to a minute late, and
// the sandboxes of a host that has died are never removed.
//
// A name other than the requested one with a number was given by an administrator, and
// stays. A static auth key cannot rename; the difference has been logged.
func (n *node) keepName(ctx context.Context, assigned, requested string) {
	number, numbered := strings.CutPrefix(assigned, requested+"-")
	if _, err := strconv.Atoi(number); !numbered || err != nil {
		return
	}
	api := n.tailnet().api
	if api == nil {
		return
	}
	log := n.log().With("requested", requested, "assigned", assigned)
	pause := cmp.Or(n.e.cfg.namePause, nameShort)
	var last error
	for range nameTries {
		err := n.takeName(ctx, api, requested)
		switch {
		case err == nil:
			log.Debug("the node has the name that it asked for") // "running" has the new one
			return
		case ctx.Err() != nil:
			return
		}
		last = err
		log.Debug("could not get the requested name, trying again", "err", err)
		if !tstime.Sleep(ctx, pause/2+rand.N(pause)) {
			return
		}
		pause = min(2*pause, nameLongest)
	}
	log.Warn("the name that the node asked for is not available: delete or rename the other device, then create the pod again", "reason", last)
}

// takeName renames the node's device, and deletes the name's holder before if
// that is the device of a pod that is gone.
func (n *node) takeName(ctx context.Context, api tailnet.DeviceAPI, requested string) error {
	self := n.snapshot().NodeID
	devices, err := api.Devices(ctx)
	if err != nil {
		return err
	}
	for _, d := range devices {
		switch {
		case d.Name != requested:
			continue
		case d.ID == self:
			return nil
		case !n.outlived(api, d):
			return fmt.Errorf("device %s: %w", d.ID, tailnet.ErrNameTaken)
		}
		switch kept, err := n.e.isWorkloads(ctx, n.profile(), d, keyOf(n.record().Pod)); {
		case err != nil:
			return err
		case kept:
			return fmt.Errorf("device %s, of the workload %s/%s: %w", d.ID, n.record().Pod.Namespace, n.record().Pod.Name, tailnet.ErrNameTaken)
		}
		if err := countDelete(api.Delete(ctx, d.ID), &n.e.tally.nameTaken); err != nil {
			return err
		}
		n.log().Info("device deleted: it was an earlier one of the same pod", "name", d.Name, "nodeID", d.ID, "lastSeen", d.LastSeen)
	}
	return api.Rename(ctx, self, requested)
}

// outlived reports whether a device is of an earlier incarnation of the node's
// pod. Both have the default hostname then, which two pods of a cluster have
// only if one of them is gone: see Pod.ChosenName. A device of another node
// of this engine is deleted by that node. If sweeping is off, no device is deleted here
// either.
func (n *node) outlived(api tailnet.DeviceAPI, d tailnet.Device) bool {
	if n.e.cfg.SweepAfter < 0 {
		return false
	}
	unseen := time.Since(d.LastSeen)
	if d.Connected || d.LastSeen.IsZero() || unseen < nameUnseen || d.Hostname != n.snapshot().Hostname {
		return false
	}
	ours, chosen := api.Ours(d)
	if !ours || chosen || n.record().Pod.ChosenName {
		return false
	}
	h := n.e.holder(d.ID)
	return (h == nil || h == n) && !n.e.isElsewhere(d.ID)
}
