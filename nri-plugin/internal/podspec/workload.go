// SPDX-License-Identifier: BSD-3-Clause

package podspec

import (
	"errors"

	"github.com/containerd/nri/pkg/api"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/settings"
)

const annotationIdentity = AnnotationPrefix + "identity"

// labelOrdinal is a label that the StatefulSet controller sets on each of its pods, and the
// kubelet hands to the runtime: the pod's own name.
const labelOrdinal = "statefulset.kubernetes.io/pod-name"

// setIdentity reads whether the device is the pod's or its workload's.
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
