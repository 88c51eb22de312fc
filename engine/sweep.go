// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/tstime"

	"tailscale-nri/engine/tailnet"
)

// How often devices are swept. Each pause is drawn from half of it to one and a half
// times it, since the plugins of all hosts start together.
const (
	defaultSweepAfter = 7 * 24 * time.Hour
	defaultSweepFirst = 8 * time.Minute // after the start: the nodes come first
	defaultSweepEvery = time.Hour
)

// sweepMost bounds the deletions of one sweep.
const sweepMost = 20

// sweepTime bounds one sweep; the next one does the rest.
const sweepTime = 10 * time.Minute

// sweep deletes, until ctx is done, devices whose pods are gone and that no other host
// deletes, since their own has died for good. Each host of the cluster sweeps for all
// of them, each of its tailnets by itself: see sweepable for the devices that are
// swept.
func (e *Engine) sweep(ctx context.Context, profile string) {
	if e.cfg.SweepAfter < 0 || e.tailnets[profile].api == nil {
		return
	}
	pause := cmp.Or(e.cfg.sweepFirst, defaultSweepFirst)
	for warned := ""; tstime.Sleep(ctx, pause/2+rand.N(pause)); pause = cmp.Or(e.cfg.sweepEvery, defaultSweepEvery) {
		err := e.sweepOnce(ctx, profile)
		if ctx.Err() == nil {
			e.tally.countSweep(err)
		}
		switch {
		case err == nil:
			warned = ""
		case ctx.Err() != nil:
			return
		case err.Error() != warned:
			warned = err.Error()
			e.log.Warn("sweeping up devices of pods that are gone, trying again", "reason", warned)
		}
	}
}

// sweepOnce makes one sweep. Nothing is deleted unless the whole list was read, and
// each device is checked again just before.
func (e *Engine) sweepOnce(ctx context.Context, profile string) error {
	api := e.tailnets[profile].api
	ctx, cancel := context.WithTimeout(ctx, sweepTime)
	defer cancel()
	devices, err := api.Devices(ctx)
	if err != nil {
		return err
	}
	identities, kept, err := e.listKept(ctx, profile)
	if err != nil {
		return err
	}
	unused := e.sweepIdentities(ctx, api, identities, kept, devices)
	devices = slices.DeleteFunc(devices, func(d tailnet.Device) bool {
		_, isKept := kept.of(d)
		return isKept || !e.sweepable(api, d)
	})
	e.tally.sweepDue.Store(int64(len(devices)))
	slices.SortFunc(devices, func(a, b tailnet.Device) int { return a.LastSeen.Compare(b.LastSeen) })
	failed := []error{unused}
	for _, d := range devices[:min(len(devices), sweepMost)] {
		err := e.sweepDevice(ctx, api, d.ID)
		if healsByItself(err) || ctx.Err() != nil {
			return errors.Join(append(failed, err)...)
		}
		failed = append(failed, err) // it concerns only this device
	}
	return errors.Join(failed...)
}

// healsByItself reports whether the tailnet is to be left alone for a while.
func healsByItself(err error) bool {
	var e *tailnet.Error
	return errors.As(err, &e) && e.Temporary
}

// sweepDevice deletes a device, if that is still right.
func (e *Engine) sweepDevice(ctx context.Context, api tailnet.DeviceAPI, id string) error {
	d, err := api.Device(ctx, id)
	switch {
	case errors.Is(err, tailnet.ErrNoDevice):
		return nil // another host was faster
	case err != nil:
		return err
	case !e.sweepable(api, d):
		return nil
	}
	if err := countDelete(api.Delete(ctx, id), &e.tally.swept); err != nil {
		return err
	}
	e.log.Info("device deleted: its pod is gone", "name", d.Name, "nodeID", id, "lastSeen", d.LastSeen)
	return nil
}

// sweepable reports whether a device can be deleted without harm. This cluster has made
// it, beyond doubt; it has not been seen for long; and no pod that this host knows has
// it. A device whose last moment is not known, or is in the future, is left alone: a
// clock is wrong.
func (e *Engine) sweepable(api tailnet.DeviceAPI, d tailnet.Device) bool {
	after := cmp.Or(e.cfg.SweepAfter, defaultSweepAfter)
	if d.Connected || d.LastSeen.IsZero() || time.Since(d.LastSeen) < after {
		return false
	}
	ours, _ := api.Ours(d)
	return ours && e.holder(d.ID) == nil && !e.isElsewhere(d.ID)
}

// holder returns the node that is, or was, this device, or one of the same ID in
// another tailnet; nil if this host has none.
func (e *Engine) holder(id string) *node {
	for _, n := range e.snapshot() {
		r := n.record()
		if string(r.NodeID) == id || slices.Contains(r.Former, tailcfg.StableNodeID(id)) {
			return n
		}
	}
	return nil
}
