// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/kubeapi"
	"tailscale-nri/nri-plugin/internal/kubestate"
	"tailscale-nri/nri-plugin/internal/settings"
)

// identityStore returns the store of workloads' devices, nil if they are not kept. If it
// cannot be opened, the other pods still get their nodes.
func identityStore(cfg config.Config, log *slog.Logger) engine.IdentityStore {
	if !cfg.StateSecrets {
		return nil
	}
	in, err := kubeapi.InCluster(os.Getenv, kubeapi.MountDir, "workload-state")
	if cfg.NodeName == "" { // no two nodes of a cluster have the same name; two hosts may
		err = errors.New(settings.NodeName + ` is "", and ` + settings.StateSecrets + "=true: have the manifest set it to spec.nodeName, as deploy/components/workload-state and the chart do")
	}
	if err == nil {
		var store *kubestate.Store
		if store, err = kubestate.New(in, cfg.Cluster); err == nil {
			return store
		}
	}
	log.Error("pods whose device goes with their workload get no tailnet node", "err", err)
	return noStore{err}
}

// noStore is the store that fails: every call returns why there is none.
type noStore struct{ why error }

func (s noStore) Load(context.Context, engine.WorkloadKey) (engine.Identity, error) {
	return engine.Identity{}, s.why
}

func (s noStore) Save(context.Context, engine.WorkloadKey, engine.Identity) (string, error) {
	return "", s.why
}

func (s noStore) Delete(context.Context, engine.WorkloadKey, string) error { return s.why }

func (s noStore) List(context.Context) (map[engine.WorkloadKey]engine.Identity, error) {
	return nil, s.why
}
