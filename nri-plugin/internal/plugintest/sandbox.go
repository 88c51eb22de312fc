// SPDX-License-Identifier: BSD-3-Clause

package plugintest

import (
	"slices"

	"github.com/containerd/nri/pkg/api"
)

// Sandbox makes one as containerd describes it; notes are keys and values.
func Sandbox(name string, notes ...string) *api.PodSandbox {
	sb := &api.PodSandbox{
		Id:          "id-" + name,
		Name:        name,
		Uid:         "uid-" + name,
		Namespace:   "default",
		Pid:         4711,
		Annotations: make(map[string]string),
		Linux: &api.LinuxPodSandbox{Namespaces: []*api.LinuxNamespace{
			{Type: "ipc", Path: "/proc/4711/ns/ipc"},
			{Type: "network", Path: "/var/run/netns/cni-" + name},
		}},
	}
	for pair := range slices.Chunk(notes, 2) {
		sb.Annotations[pair[0]] = pair[1]
	}
	return sb
}

// Stopped takes from a sandbox what containerd no longer lists once it ended.
func Stopped(sb *api.PodSandbox) *api.PodSandbox {
	sb.Pid, sb.Linux = 0, nil
	return sb
}

// HostNetwork makes a sandbox share the node's network.
func HostNetwork(sb *api.PodSandbox) *api.PodSandbox {
	sb.Linux.Namespaces = sb.Linux.Namespaces[:1]
	return sb
}

// SandboxIn is a sandbox in a namespace, which is not opted in.
func SandboxIn(namespace string, labels map[string]string, notes ...string) *api.PodSandbox {
	sb := Sandbox("web", notes...)
	sb.Namespace, sb.Labels = namespace, labels
	return sb
}
