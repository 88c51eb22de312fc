// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

const (
	// agentLabel and agentContainer tell the DaemonSet's pods from others, whatever
	// namespace or release they are of.
	agentLabel     = "app.kubernetes.io/name=tailscale-nri"
	agentContainer = "tailscale-nri"
	// usualNamespace is where the manifests put it.
	usualNamespace = "tailscale-nri"

	annotationEnabled = "tailscale.com/enabled"
	// annotationHash is the UID that the kubelet gives a static pod. The runtime
	// knows it by this one, the API server by another.
	annotationHash = "kubernetes.io/config.hash"

	// unfinished selects pods that run or will.
	unfinished = "--field-selector=status.phase!=Succeeded,status.phase!=Failed"
)

// pod has the fields that are read of a pod.
type pod struct {
	Metadata struct {
		Namespace, Name, UID, DeletionTimestamp string
		Annotations                             map[string]string
	}
	Spec struct {
		NodeName   string
		Containers []struct{ Name, Image string }
		Affinity   struct {
			NodeAffinity struct {
				RequiredDuringSchedulingIgnoredDuringExecution struct {
					NodeSelectorTerms []struct {
						MatchFields []struct {
							Key    string
							Values []string
						}
					}
				}
			}
		}
	}
	Status struct {
		Phase, Reason, Message, PodIP string
		Conditions                    []condition
		ContainerStatuses             []struct {
			Name  string
			State struct {
				Running             *struct{}
				Waiting, Terminated *struct{ Reason, Message string }
			}
		}
	}
}

type condition struct{ Type, Status, Reason, Message string }

// list is kubectl get's output for several objects. For a single one that is asked for
// by name the output is the object.
type list[T any] struct{ Items []T }

func (l *list[T]) UnmarshalJSON(data []byte) error {
	var several struct {
		Kind  string
		Items []T
	}
	if err := json.Unmarshal(data, &several); err != nil {
		return err
	}
	l.Items = several.Items
	if strings.HasSuffix(several.Kind, "List") {
		return nil
	}
	l.Items = make([]T, 1)
	return json.Unmarshal(data, &l.Items[0])
}

func (p *pod) name() string { return p.Metadata.Namespace + "/" + p.Metadata.Name }

func (p *pod) hasOptedIn() bool { return p.Metadata.Annotations[annotationEnabled] == "true" }

// runtimeUID returns the UID by which the agent knows the pod.
func (p *pod) runtimeUID() string {
	return cmp.Or(p.Metadata.Annotations[annotationHash], p.Metadata.UID)
}

// isAgent reports whether it has the agent's container.
func (p *pod) isAgent() bool { return p.image() != "" }

// image returns the agent's image.
func (p *pod) image() string {
	for _, c := range p.Spec.Containers {
		if c.Name == agentContainer {
			return c.Image
		}
	}
	return ""
}

// host returns the Kubernetes node that the pod runs on, or waits for: a DaemonSet pins
// each of its pods to one by the node's name.
func (p *pod) host() string {
	if p.Spec.NodeName != "" {
		return p.Spec.NodeName
	}
	for _, term := range p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, f := range term.MatchFields {
			if f.Key == "metadata.name" && len(f.Values) == 1 {
				return f.Values[0]
			}
		}
	}
	return ""
}

// notRunning says why nothing can be run in the agent's container, "" if it can.
func (p *pod) notRunning() string {
	for _, c := range p.Status.ContainerStatuses {
		switch {
		case c.Name != agentContainer:
		case c.State.Running != nil:
			return ""
		case c.State.Waiting != nil:
			return joined(c.State.Waiting.Reason, c.State.Waiting.Message)
		case c.State.Terminated != nil:
			return joined("ended: "+c.State.Terminated.Reason, c.State.Terminated.Message)
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Type == "PodScheduled" && c.Status == "False" {
			return joined(c.Reason, c.Message)
		}
	}
	return joined(p.Status.Phase, p.Status.Reason, p.Status.Message)
}

// silence says that the agent does not answer, and why.
func (p *pod) silence(why any) string {
	return fmt.Sprintf("agent %s does not answer: %v", p.name(), why)
}

// joined joins the texts that are not empty.
func joined(texts ...string) string {
	texts = slices.DeleteFunc(texts, func(s string) bool { return strings.TrimSpace(s) == "" })
	return strings.Join(strings.Fields(strings.Join(texts, ": ")), " ")
}

// node has the fields that are read of a Kubernetes node.
type node struct {
	Metadata struct {
		Name   string
		Labels map[string]string
	}
	Spec struct {
		Taints []struct{ Key, Value, Effect string }
	}
	Status struct{ Conditions []condition }
}

// isServed reports whether the manifests put an agent there: Linux, and not a virtual
// node.
func (n *node) isServed() bool {
	l := n.Metadata.Labels
	return cmp.Or(l["kubernetes.io/os"], "linux") == "linux" && l["type"] != "virtual-kubelet" &&
		l["eks.amazonaws.com/compute-type"] != "fargate" && l["liqo.io/type"] != "virtual-node"
}

// state explains why the agent of a node may be missing or silent, "" if nothing does.
func (n *node) state() string {
	var facts []string
	for _, c := range n.Status.Conditions {
		if c.Type == "Ready" && c.Status != "True" {
			facts = append(facts, "the node is NotReady ("+joined(c.Reason, c.Message)+")")
		}
	}
	for _, t := range n.Spec.Taints {
		taint := t.Key
		if t.Value != "" {
			taint += "=" + t.Value
		}
		// These repeat the condition.
		if !strings.HasPrefix(t.Key, "node.kubernetes.io/") {
			facts = append(facts, "taint "+taint+":"+t.Effect)
		}
	}
	return strings.Join(facts, ", ")
}
