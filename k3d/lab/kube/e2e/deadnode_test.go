// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// deadNode has the DaemonSet of n2 cover n1 as well, where its pod stands by, and rolls it past a node that has never come
// up, and then past n1, which crashes. Each time the nodes that are up get their new agents, and the wait of make deploy
// ends and names those that are down.
func deadNode(s *stage) {
	s.apply(podSpec{name: "b", node: "n2", annotations: enabled()}.object())
	s.awaitReady("b")
	before := s.awaitRunning("b")
	// A pod of n1 whose sandbox the kubelet has not removed yet would be kept for ten minutes after the crash.
	s.awaitDevices(before...)
	s.coverOnly("")
	crashed := false
	n1 := s.node("n1")
	defer func() {
		s.t.Helper()
		s.coverOnly("n2") // before n1 is back, where another DaemonSet is at home
		s.rolledPast()
		if !crashed {
			return
		}
		s.must(n1.PowerOn(s.ctx))
		s.kubectl("wait", "--for=condition=Ready", "node/n1", "--timeout="+patience.String())
		s.kubectl("wait", "--for=delete", "-n", s.siteOf("n2").Namespace, "pod", "--field-selector=spec.nodeName=n1", "--timeout="+patience.String())
		s.eventually(func() error { _, err := s.agent("n1"); return err })
	}()
	if out := s.rolledPast(); out != "" {
		s.t.Errorf("the wait of make deploy, with all nodes up, says %q", out)
	}
	flows, _ := s.flows("b")
	s.neverUp("n3")
	s.neverUp("virtual", "type", "virtual-kubelet") // which is not even waited for, since it has no pod
	s.rollPast("n3", "n1", "n2")

	crashed = true
	s.must(n1.Crash())
	s.awaitUnknown("n1")
	s.rollPast("n1 n3", "n2")
	s.same(before, s.awaitRunning("b"))
	s.undisturbed(flows)
}

// neverUp makes a node that has no kubelet, for as long as the test runs, with further labels and their values.
func (s *stage) neverUp(name string, labels ...string) {
	s.t.Helper()
	all := object{"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}
	for pair := range slices.Chunk(labels, 2) {
		all[pair[0]] = pair[1]
	}
	s.apply(object{"apiVersion": "v1", "kind": "Node", "metadata": object{"name": name, "labels": all}})
	s.awaitUnknown(name)
}

func (s *stage) awaitUnknown(node string) {
	s.t.Helper()
	s.kubectl("wait", "--for=condition=Ready=Unknown", "node/"+node, "--timeout="+patience.String())
}

// rollPast rolls the DaemonSet, and fails unless the nodes that are up have other agents afterwards.
func (s *stage) rollPast(down string, up ...string) {
	s.t.Helper()
	old := s.agentsOfN2()
	s.kubectl("rollout", "restart", "-n", s.siteOf("n2").Namespace, "daemonset/tailscale-nri")
	if out := s.rolledPast(); !strings.Contains(out, "not waited for, since they are down: "+down+";") {
		s.t.Errorf("the wait of make deploy says nothing of %s: %q", down, out)
	}
	now := s.agentsOfN2()
	for _, node := range up {
		if now[node] == "" || now[node] == old[node] {
			s.t.Errorf("the agent of %s was %q, and is %q after the roll", node, old[node], now[node])
		}
	}
	for node := range strings.FieldsSeq(down) {
		if now[node] != "" {
			s.t.Errorf("the agent of %s, which is down, is ready: this says nothing", node)
		}
	}
}

// agentsOfN2 are the pods of the DaemonSet of n2 that are ready and are to stay, by their nodes.
func (s *stage) agentsOfN2() map[string]string {
	s.t.Helper()
	agents := map[string]string{}
	pods, err := s.listAgents("n2")
	s.must(err)
	for _, pod := range pods {
		if pod.isReady() {
			agents[pod.Spec.NodeName] = pod.Metadata.Name
		}
	}
	return agents
}

// coverOnly has the DaemonSet of n2 run on one node, or on all where that is "".
func (s *stage) coverOnly(node string) {
	s.t.Helper()
	value := "null"
	if node != "" {
		value = fmt.Sprintf("%q", node)
	}
	s.kubectl("patch", "daemonset", "-n", s.siteOf("n2").Namespace, "tailscale-nri", "--type=merge", "-p",
		fmt.Sprintf(`{"spec":{"template":{"spec":{"nodeSelector":{"kubernetes.io/hostname":%s}}}}}`, value))
}

// rolledPast waits as make deploy does, and returns what that says.
func (s *stage) rolledPast() string {
	s.t.Helper()
	script, err := filepath.Abs("../../../../deploy/rollout.sh")
	s.must(err)
	cmd := s.Lab.NetCommand(s.ctx, script, "kubectl")
	cmd.Env = append(append(cmd.Env, s.ClientEnv()...), "WAIT=120", "NAMESPACE="+s.siteOf("n2").Namespace)
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("the wait of make deploy: %v: %s", err, out)
	}
	return string(out)
}
