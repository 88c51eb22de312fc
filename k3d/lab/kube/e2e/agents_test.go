// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
)

// agentPod is a pod of the plugin.
type agentPod struct {
	Metadata struct{ Name, DeletionTimestamp string }
	Spec     struct{ NodeName string }
	Status   struct {
		Conditions []struct{ Type, Status string }
	}
}

// isReady reports whether the pod is ready and is to stay.
func (p agentPod) isReady() bool {
	ready := slices.ContainsFunc(p.Status.Conditions, func(c struct{ Type, Status string }) bool {
		return c.Type == "Ready" && c.Status == "True"
	})
	return ready && p.Metadata.DeletionTimestamp == ""
}

// listAgents lists those of a site, on all nodes or as kubectl selects them.
func (s *stage) listAgents(site string, selection ...string) ([]agentPod, error) {
	var pods struct{ Items []agentPod }
	args := append([]string{"pods", "-n", s.siteOf(site).Namespace, "-l", "app.kubernetes.io/name=tailscale-nri"}, selection...)
	err := s.Get(s.ctx, &pods, args...)
	return pods.Items, err
}

// agent returns the name of the plugin's pod on a node that is ready and is to stay.
func (s *stage) agent(node string) (string, error) {
	pods, err := s.listAgents(node, "--field-selector=spec.nodeName="+node)
	if err != nil {
		return "", err
	}
	for _, pod := range pods {
		if pod.isReady() {
			return pod.Metadata.Name, nil
		}
	}
	return "", fmt.Errorf("no pod of the plugin is ready on node %s", node)
}

// tailnetNode is what the plugin says of a pod's node.
type tailnetNode struct {
	UID, Namespace, Pod, State, Reason, NodeID, DNSName string
	Addresses                                           []netip.Addr
}

// IP4 is the node's address; it has one once it was Running.
func (n tailnetNode) IP4() netip.Addr {
	if len(n.Addresses) == 0 {
		return netip.Addr{}
	}
	return n.Addresses[0]
}

// name is the first label of the node's name in the tailnet.
func (n tailnetNode) name() string {
	label, _, _ := strings.Cut(n.DNSName, ".")
	return label
}

// status asks the plugin of a node as a user does.
func (s *stage) status(node string) (nodes []tailnetNode, err error) {
	agent, err := s.agent(node)
	if err != nil {
		return nil, err
	}
	return s.statusOf(s.siteOf(node).Namespace, agent)
}

// statusOf is what an agent says of its host's pods. Its command ends with 1 where one of them is not Running, and says
// what it has to say all the same.
func (s *stage) statusOf(namespace, agent string) (nodes []tailnetNode, err error) {
	out, err := s.Kubectl(s.ctx, "exec", "-n", namespace, agent, "--", "/tailscale-nri", "status", "-o", "json")
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1 || out == "") {
		return nil, err
	}
	var report struct{ Nodes []tailnetNode }
	err = json.Unmarshal([]byte(out), &report)
	return report.Nodes, err
}

// podFacts are those of a pod as the API server has it.
type podFacts struct {
	Metadata struct{ Name, UID string }
	Spec     struct{ NodeName string }
	Status   struct {
		Phase, PodIP      string
		ContainerStatuses []struct {
			RestartCount int
			State        struct {
				Waiting    struct{ Reason, Message string }
				Terminated struct{ Reason, Message string }
			}
		}
	}
}

func (s *stage) pod(name string) (pod podFacts, err error) {
	return pod, s.Get(s.ctx, &pod, "pod", name)
}

// tailnetNodeOf is the pod's node.
func (s *stage) tailnetNodeOf(name string) (tailnetNode, error) {
	pod, err := s.pod(name)
	if err != nil {
		return tailnetNode{}, err
	}
	nodes, err := s.status(pod.Spec.NodeName)
	if err != nil {
		return tailnetNode{}, err
	}
	for _, n := range nodes {
		if n.UID == pod.Metadata.UID {
			return n, nil
		}
	}
	return tailnetNode{}, fmt.Errorf("the plugin on %s knows nothing of pod %s", pod.Spec.NodeName, name)
}

// awaitRunning returns the pods' nodes when they are Running.
func (s *stage) awaitRunning(pods ...string) (nodes []tailnetNode) {
	s.t.Helper()
	for _, pod := range pods {
		s.eventually(func() error {
			n, err := s.tailnetNodeOf(pod)
			if err != nil {
				return err
			}
			if n.State != "Running" {
				return fmt.Errorf("node of pod %s is %s: %s", pod, n.State, n.Reason)
			}
			nodes = append(nodes, n)
			return nil
		})
	}
	return nodes
}

// pair makes two pods that opt in, on n1 and on n2, and returns their nodes when they are Running.
func (s *stage) pair(first, second string) []tailnetNode {
	s.t.Helper()
	s.apply(podSpec{name: first, node: "n1", annotations: enabled()}.object(), podSpec{name: second, node: "n2", annotations: enabled()}.object())
	s.awaitReady(first, second)
	return s.awaitRunning(first, second)
}

// podsOf lists the pods with a label app.
func (s *stage) podsOf(app string) (names []string) {
	s.t.Helper()
	out := s.kubectl("get", "pods", "-l", "app="+app, "-o", "jsonpath={.items[*].metadata.name}")
	return strings.Fields(out)
}

// reaches fails unless the page at addr can be had from a pod, and names the pod's own address as the one that asks.
func (s *stage) reaches(pod string, own, addr netip.Addr) {
	s.t.Helper()
	page, err := s.fetch(pod, addr)
	s.must(err)
	if page.Remote.Addr() != own {
		s.t.Errorf("%v was asked by %v, want %v, the address of pod %s", addr, page.Remote.Addr(), own, pod)
	}
}

// reachedFromPeer is reaches, from the peer.
func (s *stage) reachedFromPeer(addr netip.Addr) {
	s.t.Helper()
	page, err := s.fetchFromPeer(addr)
	s.must(err)
	if own := s.peer.IP4; addr.Is4() && page.Remote.Addr() != own {
		s.t.Errorf("%v was asked by %v, want %v, the peer", addr, page.Remote.Addr(), own)
	}
}

// awaitDevices returns when the tailnet has exactly the devices of these nodes, and the peer.
func (s *stage) awaitDevices(nodes ...tailnetNode) {
	s.t.Helper()
	want := []string{"peer"}
	for _, n := range nodes {
		want = append(want, n.NodeID)
	}
	// The kubelet removes a sandbox up to a minute after the pod's end; one that went without an event has one more.
	s.within(2*patience, func() error {
		devices, err := s.plane.Devices(s.ctx)
		if err != nil {
			return err
		}
		var have, odd []string
		for _, d := range devices {
			if d.Hostname == "peer" {
				d.ID = "peer"
			}
			have = append(have, d.ID)
			if !slices.Contains(want, d.ID) {
				odd = append(odd, d.Hostname)
			}
		}
		if len(odd) > 0 || len(have) != len(want) {
			return fmt.Errorf("the tailnet has %d devices, want %d; not wanted: %s", len(have), len(want), strings.Join(odd, ", "))
		}
		return nil
	})
}

var errNotYet = errors.New("not yet")

// says fails until what a command says holds all of these texts.
func says(out string, texts ...string) error {
	for _, text := range texts {
		if !strings.Contains(out, text) {
			return fmt.Errorf("%w: it does not say %q: %s", errNotYet, text, out[max(0, len(out)-1500):])
		}
	}
	return nil
}
