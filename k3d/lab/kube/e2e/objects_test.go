// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"encoding/json"
	"maps"

	"tailscale-nri/k3d/lab"
)

// object is a Kubernetes object, as JSON has it.
type object = map[string]any

// list is one document of many objects.
func list(objects ...object) string {
	all, err := json.Marshal(object{"apiVersion": "v1", "kind": "List", "items": objects})
	if err != nil {
		panic(err) // objects are plain maps
	}
	return string(all)
}

const (
	optIn      = "tailscale.com/enabled"
	requireKey = "required-plugins.noderesource.dev"
)

// podSpec is a pod of labtool, which serves on its usual ports.
type podSpec struct {
	name        string
	node        string // "" leaves it to the scheduler
	annotations map[string]string
	labels      map[string]string
	args        []string
	more        object // of the pod's spec
	container   object // of its container
}

// enabled opts in, with more annotations.
func enabled(more ...string) map[string]string {
	annotations := map[string]string{optIn: "true"}
	for i := 0; i+1 < len(more); i += 2 {
		annotations[more[i]] = more[i+1]
	}
	return annotations
}

func (p podSpec) object() object {
	return object{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": object{"name": p.name, "annotations": p.annotations, "labels": p.labels}, "spec": p.spec(),
	}
}

func (p podSpec) spec() object {
	container := object{"name": "main", "image": lab.ToolImage, "imagePullPolicy": "Never"}
	if len(p.args) > 0 {
		container["args"] = p.args
	}
	maps.Copy(container, p.container)
	spec := object{"containers": []object{container}, "terminationGracePeriodSeconds": 1}
	if p.node != "" {
		spec["nodeSelector"] = object{"kubernetes.io/hostname": p.node}
	}
	maps.Copy(spec, p.more)
	return spec
}

// workload is a Deployment or StatefulSet of such pods.
func (p podSpec) workload(kind string, replicas int, more object) object {
	labels := map[string]string{"app": p.name}
	spec := object{
		"replicas": replicas, "selector": object{"matchLabels": labels},
		"template": object{"metadata": object{"labels": labels, "annotations": p.annotations}, "spec": p.spec()},
	}
	maps.Copy(spec, more)
	return object{"apiVersion": "apps/v1", "kind": kind, "metadata": object{"name": p.name}, "spec": spec}
}

// service leads to the pods with a label app.
func service(name, app string) object {
	return object{
		"apiVersion": "v1", "kind": "Service", "metadata": object{"name": name},
		"spec": object{"selector": object{"app": app}, "ports": []object{{"port": 80, "targetPort": httpPort}}},
	}
}

// probed is a container that is ready when its page can be had.
func probed() object {
	return object{"readinessProbe": object{"httpGet": object{"path": "/", "port": httpPort}, "periodSeconds": 1}}
}
