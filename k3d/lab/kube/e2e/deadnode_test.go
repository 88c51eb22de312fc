// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
)

// deadNode has the DaemonSet of n2 cover n1 as well, where its pod stands by, crashes n1, and rolls the DaemonSet twice:
// once when n1 has a pod that was ready, once when one waits there that never started. Each time n2 gets its new agent,
// and the wait of make deploy ends and names n1.
func deadNode(s *stage) {
	s.apply(podSpec{name: "b", node: "n2", annotations: enabled()}.object())
	s.awaitReady("b")
	before := s.awaitRunning("b")
	// A pod of n1 whose sandbox the kubelet has not removed yet would be kept for ten minutes after the crash.
	s.awaitDevices(before...)
	s.coverOnly("")
	n1 := s.node("n1")
	defer func() {
		s.t.Helper()
		s.coverOnly("n2") // before n1 is back, where another DaemonSet is at home
		s.rolledPast()
		s.must(n1.PowerOn(s.ctx))
		s.kubectl("wait", "--for=condition=Ready", "node/n1", "--timeout="+patience.String())
		s.kubectl("wait", "--for=delete", "-n", s.siteOf("n2").Namespace, "pod", "--field-selector=spec.nodeName=n1", "--timeout="+patience.String())
		s.eventually(func() error { _, err := s.agent("n1"); return err })
	}()
	if out := s.rolledPast(); out != "" {
		s.t.Errorf("the wait of make deploy, with all nodes up, says %q", out)
	}
	flows, _ := s.flows("b")
	s.must(n1.Crash())
	s.kubectl("wait", "--for=condition=Ready=Unknown", "node/n1", "--timeout="+patience.String())

	old, err := s.agent("n2")
	s.must(err)
	for range 2 {
		s.kubectl("rollout", "restart", "-n", s.siteOf("n2").Namespace, "daemonset/tailscale-nri")
		old = s.passed(old)
	}
	s.same(before, s.awaitRunning("b"))
	s.undisturbed(flows)
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

// passed fails unless a roll has replaced the agent of n2 while a pod for n1 cannot start, and returns the new one.
func (s *stage) passed(old string) string {
	s.t.Helper()
	if out := s.rolledPast(); !strings.Contains(out, "not waited for, since they are down: n1") {
		s.t.Errorf("the wait of make deploy says nothing of n1, which is down: %q", out)
	}
	agent, err := s.agent("n2")
	s.must(err)
	if agent == old {
		s.t.Errorf("%s is still the agent of n2 after the roll", old)
	}
	waiting := s.kubectl("get", "pods", "-n", s.siteOf("n2").Namespace, "-l", "app.kubernetes.io/name=tailscale-nri",
		"--field-selector=spec.nodeName=n1,status.phase=Pending", "-o", "name")
	if waiting == "" {
		s.t.Error("no pod of the DaemonSet waits for n1, so this says nothing")
	}
	return agent
}

// rolledPast waits as make deploy does, and returns what that says.
func (s *stage) rolledPast() string {
	s.t.Helper()
	script, err := filepath.Abs("../../../rollout.sh")
	s.must(err)
	cmd := s.Lab.NetCommand(s.ctx, script, "kubectl")
	cmd.Env = append(append(cmd.Env, s.ClientEnv()...), "WAIT=120", "NAMESPACE="+s.siteOf("n2").Namespace)
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("the wait of make deploy: %v: %s", err, out)
	}
	return string(out)
}
