// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"slices"

	"github.com/containerd/nri/pkg/api"

	"tailscale-nri/engine"
)

// podDefaults is what a pod gets that does not ask for anything else.
type podDefaults struct {
	cluster string   // first part of the hostname, a DNS label
	tags    []string // may be empty where an auth key brings the tags
	kept    bool     // a device can go with its workload
}

// podFrom translates a runtime's pod sandbox into the engine's terms. It
// returns false for a pod that did not opt in. An error names the annotation,
// its value and what to write instead: the runtime shows it to the user.
func podFrom(sb *api.PodSandbox, d podDefaults) (engine.Pod, bool, error) {
	in, err := optedIn(sb.GetAnnotations())
	if err != nil || !in {
		return engine.Pod{}, false, err
	}
	pod := engine.Pod{
		SandboxID: sb.GetId(),
		UID:       sb.GetUid(),
		Namespace: sb.GetNamespace(),
		Name:      sb.GetName(),
		PID:       sb.GetPid(),
	}
	if pod.NetNS, err = netnsOf(sb); err != nil {
		return engine.Pod{}, false, err
	}
	if pod.Hostname, err = hostnameOf(sb, d); err != nil {
		return engine.Pod{}, false, err
	}
	pod.ChosenName = sb.GetAnnotations()[annotationHostname] != ""
	if pod.Tags, err = tagsOf(sb, d); err != nil {
		return engine.Pod{}, false, err
	}
	if pod.Features, err = featuresOf(sb); err != nil {
		return engine.Pod{}, false, err
	}
	if err := checkWorkload(sb, pod.Features, d.kept); err != nil {
		return engine.Pod{}, false, err
	}
	return pod, true, nil
}

// netnsOf returns the path of the sandbox's network namespace. A sandbox that
// shares the node's has no such entry.
func netnsOf(sb *api.PodSandbox) (string, error) {
	for _, ns := range sb.GetLinux().GetNamespaces() {
		if ns.GetType() == "network" {
			return ns.GetPath(), nil
		}
	}
	return "", errors.New("a pod with hostNetwork: true has no network of its own to put a tailnet node in: " +
		"remove the annotation " + annotationEnabled + " or hostNetwork")
}

func hostnameOf(sb *api.PodSandbox, d podDefaults) (string, error) {
	given := sb.GetAnnotations()[annotationHostname]
	if given == "" {
		return defaultHostname(d.cluster, sb.GetNamespace(), sb.GetName()), nil
	}
	label, err := givenHostname(given)
	if err != nil {
		return "", badAnnotation(annotationHostname, given, err.Error())
	}
	return label, nil
}

func tagsOf(sb *api.PodSandbox, d podDefaults) ([]string, error) {
	given := sb.GetAnnotations()[annotationTags]
	if given == "" {
		return slices.Clone(d.tags), nil
	}
	tags, err := parseTags(given)
	if err != nil {
		return nil, badAnnotation(annotationTags, given, err.Error())
	}
	return tags, nil
}

// gone reports whether a sandbox in the runtime's list has ended. The runtime
// lists such sandboxes until they are removed, with neither a process nor a
// network namespace; one that shares the node's network still has a process.
func gone(sb *api.PodSandbox) bool {
	path, err := netnsOf(sb)
	return sb.GetPid() == 0 && (err != nil || path == "")
}
