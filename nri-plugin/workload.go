// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"github.com/containerd/nri/pkg/api"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/kubeapi"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/kubestate"
)

const annotationIdentity = annotationPrefix + "identity"

// labelOrdinal is what the StatefulSet controller writes into each of its pods, and the
// kubelet hands to the runtime: the pod's own name.
const labelOrdinal = "statefulset.kubernetes.io/pod-name"

// setIdentity reads whose the device is.
func setIdentity(f *engine.Features, value string) error {
	switch value {
	case "workload":
		f.Workload = true
	case "pod":
		f.Workload = false
	default:
		return errors.New(`say "workload" for a device that goes with a StatefulSet's pod from host to host, or "pod" or nothing for one of each pod's own`)
	}
	return nil
}

// checkWorkload refuses a pod that asks for a device of its workload and cannot have it.
func checkWorkload(sb *api.PodSandbox, f engine.Features, kept bool) error {
	if !f.Workload {
		return nil
	}
	var remedy string
	switch {
	case sb.GetLabels()[labelOrdinal] != sb.GetName():
		remedy = "it is for the pods of a StatefulSet, which come back under their names: make it one, or leave the annotation out"
	case !kept:
		remedy = "this cluster keeps no identities: have its administrator add deploy/components/workload-state to the overlay, or set workloadState of the chart (" + settings.StateSecrets + "=true and the rights for it)"
	default:
		return nil
	}
	return badAnnotation(annotationIdentity, "workload", remedy)
}

// identityStore is where workloads' devices are kept, nil if they are not. One that
// cannot be had is no reason to leave all other pods without a node.
func identityStore(cfg Config, log *slog.Logger) engine.IdentityStore {
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
	log.Error("pods whose device goes with their workload have none", "err", err)
	return noStore{err}
}

// noStore is a store that is not there.
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
