// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"fmt"
	"strings"
)

// moveOrdinal has a StatefulSet's pod, whose device goes with it, come back on the other node: it is the same device, and
// a peer finds it under the address that it knows.
func (s *stage) moveOrdinal(agents string) {
	s.t.Helper()
	db := podSpec{name: "moves", node: "n1", annotations: enabled("tailscale.com/identity", "workload"), container: probed()}
	s.apply(db.workload("StatefulSet", 1, object{"serviceName": "moves"}))
	before := s.awaitServedBy(agents, "n1", "moves-0")
	s.awaitReady("moves-0") // its node may be up before its server listens
	s.reachedFromPeer(before.IP4())
	secrets := func() string {
		return s.kubectl("get", "secrets", "-n", agents, "-l", "app.kubernetes.io/managed-by=tailscale-nri",
			"-o", `jsonpath={range .items[*]}{.metadata.annotations.tailscale-nri/pod} {.type}{"\n"}{end}`)
	}
	if got := strings.TrimSpace(secrets()); got != "moves-0 tailscale-nri/workload-identity" {
		s.t.Errorf("Secrets of identities: %q", got)
	}

	s.kubectl("patch", "statefulset/moves", "--type=merge", "-p", `{"spec":{"template":{"spec":{"nodeSelector":{"kubernetes.io/hostname":"n2"}}}}}`)
	after := s.awaitServedBy(agents, "n2", "moves-0")
	if after.UID == before.UID || after.NodeID != before.NodeID || after.IP4() != before.IP4() || after.name() != before.name() {
		s.t.Errorf("on n1 it was %+v, on n2 it is %+v", before, after)
	}
	s.awaitReady("moves-0")
	s.reachedFromPeer(after.IP4())

	// A pod that is none of a StatefulSet's is told so.
	s.apply(podSpec{name: "alone", node: "n1", annotations: enabled("tailscale.com/identity", "workload")}.object())
	s.eventually(func() error {
		out, err := s.Kubectl(s.ctx, "describe", "pod", "alone")
		if err != nil {
			return err
		}
		return says(out, "tailscale.com/identity", "StatefulSet")
	})
	s.kubectl("delete", "statefulset/moves", "pod/alone", "--wait", "--cascade=foreground")
}

// awaitServedBy waits until the agent of the node has the pod Running.
func (s *stage) awaitServedBy(agents, node, pod string) (found tailnetNode) {
	s.t.Helper()
	s.eventually(func() error {
		agent, err := s.Kubectl(s.ctx, "get", "pods", "-n", agents, "-l", "app.kubernetes.io/name=tailscale-nri",
			"--field-selector", "spec.nodeName="+node, "-o", "jsonpath={.items[0].metadata.name}")
		if err != nil {
			return err
		}
		nodes, err := s.statusOf(agents, agent)
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if n.Pod == pod && n.State == "Running" {
				found = n
				return nil
			}
		}
		return fmt.Errorf("%s serves %+v", agent, nodes)
	})
	return found
}
