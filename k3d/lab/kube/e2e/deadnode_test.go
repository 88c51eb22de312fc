// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
)

// deadNode has the DaemonSet of n1 cover n2 as well, which has crashed, and rolls it twice: once when the pod for n2 is
// new, once when an old one waits there. Each time n1 gets its new agent, and the wait of make deploy ends and names n2.
func deadNode(s *stage) {
	s.apply(podSpec{name: "a", node: "n1", annotations: enabled()}.object())
	s.awaitReady("a")
	before := s.awaitRunning("a")
	// A pod of n2 whose sandbox the kubelet has not removed yet would be kept for ten minutes after the crash.
	s.awaitDevices(before...)
	flows, _ := s.flows("a")
	n2 := s.node("n2")
	s.must(n2.Crash())
	defer func() {
		s.t.Helper()
		s.coverOnly("n1") // before n2 is back, where another DaemonSet is at home
		s.rolledPast()
		s.must(n2.PowerOn(s.ctx))
		s.kubectl("wait", "--for=condition=Ready", "node/n2", "--timeout="+patience.String())
		s.kubectl("wait", "--for=delete", "-n", namespace, "pod", "--field-selector=spec.nodeName=n2", "--timeout="+patience.String())
		s.eventually(func() error { _, err := s.agent("n2"); return err })
	}()
	s.kubectl("wait", "--for=condition=Ready=Unknown", "node/n2", "--timeout="+patience.String())

	old := s.agentOnN1()
	s.coverOnly("")
	old = s.passed(old)
	s.kubectl("rollout", "restart", "-n", namespace, "daemonset/tailscale-nri")
	s.passed(old)

	s.same(before, s.awaitRunning("a"))
	s.undisturbed(flows)
}

// coverOnly has the DaemonSet of n1 run on one node, or on all where that is "".
func (s *stage) coverOnly(node string) {
	s.t.Helper()
	value := "null"
	if node != "" {
		value = fmt.Sprintf("%q", node)
	}
	s.kubectl("patch", "daemonset", "-n", namespace, "tailscale-nri", "--type=merge", "-p",
		fmt.Sprintf(`{"spec":{"template":{"spec":{"nodeSelector":{"kubernetes.io/hostname":%s}}}}}`, value))
}

func (s *stage) agentOnN1() string {
	s.t.Helper()
	agent, err := s.agent("n1")
	s.must(err)
	return agent
}

// passed fails unless a roll has replaced the agent of n1 while the pod for n2 has no node to start on, and returns the
// new one.
func (s *stage) passed(old string) string {
	s.t.Helper()
	if out := s.rolledPast(); !strings.Contains(out, "not waited for, since they are down: n2") {
		s.t.Errorf("the wait of make deploy says nothing of n2, which is down: %q", out)
	}
	agent := s.agentOnN1()
	if agent == old {
		s.t.Errorf("%s is still the agent of n1 after the roll", old)
	}
	waiting := s.kubectl("get", "pods", "-n", namespace, "-l", "app.kubernetes.io/name=tailscale-nri",
		"--field-selector=spec.nodeName=n2,status.phase=Pending", "-o", "name")
	if waiting == "" {
		s.t.Error("no pod of the DaemonSet waits for n2, so this says nothing")
	}
	return agent
}

// rolledPast waits as make deploy does, and returns what that says.
func (s *stage) rolledPast() string {
	s.t.Helper()
	script, err := filepath.Abs("../../../rollout.sh")
	s.must(err)
	cmd := s.Lab.NetCommand(s.ctx, script, "kubectl")
	cmd.Env = append(append(cmd.Env, s.ClientEnv()...), "WAIT=120")
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("the wait of make deploy: %v: %s", err, out)
	}
	return string(out)
}
