// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"tailscale.com/tstime"
	"tailscale.com/types/key"

	"tailscale-nri/engine/internal/podstate"
	"tailscale-nri/engine/tailnet"
)

// kept are the workloads' devices, which go only with their identities.
type kept struct {
	ids      map[string]WorkloadKey
	machines map[key.MachinePublic]WorkloadKey // also those without a known ID
}

// listKept returns the identities that are stored, and their devices. All of them are
// in the default tailnet.
func (e *Engine) listKept(ctx context.Context, profile string) (map[WorkloadKey]Identity, kept, error) {
	k := kept{map[string]WorkloadKey{}, map[key.MachinePublic]WorkloadKey{}}
	if e.cfg.Identities == nil || profile != "" {
		return nil, k, nil
	}
	all, err := e.cfg.Identities.List(ctx)
	if err != nil {
		return nil, k, err
	}
	for w, id := range all {
		if id.NodeID != "" {
			k.ids[string(id.NodeID)] = w
		}
		if keys, err := podstate.ParseKeys(id.State); err == nil && !keys.Machine.IsZero() {
			k.machines[keys.Machine] = w
		}
	}
	return all, k, nil
}

// isWorkloads reports whether the device, of the profile's tailnet, belongs to the
// workload's identity, which is in the default one.
func (e *Engine) isWorkloads(ctx context.Context, profile string, d tailnet.Device, w WorkloadKey) (bool, error) {
	if e.cfg.Identities == nil || profile != "" {
		return false, nil
	}
	id, err := e.cfg.Identities.Load(ctx, w)
	if errors.Is(err, ErrNoIdentity) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading the stored identity of the workload: %w", err)
	}
	keys, err := podstate.ParseKeys(id.State)
	return d.ID == string(id.NodeID) || err == nil && !keys.Machine.IsZero() && keys.Machine == d.MachineKey, nil
}

// of returns the workload that has the device.
func (k kept) of(d tailnet.Device) (WorkloadKey, bool) {
	w, ok := k.ids[d.ID]
	if !ok {
		w, ok = k.machines[d.MachineKey]
	}
	return w, ok
}

// sweepIdentities deletes the identities that were not used for long, with their
// devices. It takes each first, so that no pod takes it meanwhile. An identity that has
// a holder still gets a lease's time for a renewal: this host's clock may be the one
// that is wrong.
func (e *Engine) sweepIdentities(ctx context.Context, api tailnet.DeviceAPI, all map[WorkloadKey]Identity, k kept, devices []tailnet.Device) error {
	of := map[WorkloadKey][]tailnet.Device{}
	for _, d := range devices {
		if w, ok := k.of(d); ok {
			of[w] = append(of[w], d)
		}
	}
	maps.DeleteFunc(all, func(w WorkloadKey, id Identity) bool { return !e.isUnused(api, id, of[w]) })
	held := false
	for _, id := range all {
		held = held || id.Holder != (Holder{})
	}
	if held && !tstime.Sleep(ctx, e.cfg.leaseTime) {
		return ctx.Err()
	}
	var failed []error
	left := sweepMost
	for w, id := range all {
		if left == 0 || ctx.Err() != nil {
			break
		}
		left--
		if err := e.sweepIdentity(ctx, api, w, id, of[w]); err != nil && !errors.Is(err, ErrIdentityChanged) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// isUnused reports whether an identity can be deleted without harm. One that was last
// used in the future is left alone: a clock is wrong.
func (e *Engine) isUnused(api tailnet.DeviceAPI, id Identity, devices []tailnet.Device) bool {
	if id.LastUsed.IsZero() || time.Since(id.LastUsed) < cmp.Or(e.cfg.SweepAfter, defaultSweepAfter) {
		return false
	}
	for _, d := range devices {
		if !e.sweepable(api, d) {
			return false
		}
	}
	return true
}

func (e *Engine) sweepIdentity(ctx context.Context, api tailnet.DeviceAPI, w WorkloadKey, id Identity, devices []tailnet.Device) (err error) {
	id.Generation++
	id.Holder = Holder{Host: e.cfg.Host}
	if id.Version, err = e.cfg.Identities.Save(ctx, w, id); err != nil {
		return err
	}
	for _, d := range devices {
		if err := e.sweepDevice(ctx, api, d.ID); err != nil {
			return err
		}
	}
	if err := e.cfg.Identities.Delete(ctx, w, id.Version); err != nil {
		return err
	}
	e.log.Info("identity deleted: no pod has used it", "pod", w.Namespace+"/"+w.Pod, "nodeID", id.NodeID, "lastUsed", id.LastUsed)
	return nil
}
