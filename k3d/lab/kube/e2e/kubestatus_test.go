// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"time"

	"tailscale-nri/k3d/lab/control"
)

const (
	readyCondition = "tailscale.com/ready"
	statusBinding  = "tailscale-nri-kubernetes-status"
)

// kubernetesStatus is what kubectl shows of pods' nodes: before and when they are up, when the tailnet throws one out,
// over a restart of the agent, and where it lacks the rights.
func kubernetesStatus(s *stage) {
	s.must(s.plane.SetOutage(s.ctx, control.Refusing))
	up := func() { s.must(s.plane.SetOutage(s.ctx, control.Up)) }
	defer up()
	gated := podSpec{
		name: "gated", node: "n1", annotations: enabled(),
		more: object{"readinessGates": []object{{"conditionType": readyCondition}}},
	}
	s.apply(gated.object())
	s.eventually(func() error {
		if got := s.podCondition("gated", "ContainersReady", "status"); got != "True" {
			return fmt.Errorf("%w: ContainersReady is %q", errNotYet, got)
		}
		return nil
	})
	if got := s.podCondition("gated", "Ready", "status"); got != "False" {
		s.t.Errorf("a pod whose node is not up has Ready %q", got)
	}
	up()
	s.awaitReady("gated")
	before := s.awaitRunning("gated")[0]
	s.awaitCondition(before)
	s.must(says(s.kubectl("describe", "pod", "gated"), "TailnetJoined", before.DNSName, before.IP4().String(), "tailscale-nri"))
	s.thrownOut(before)
	s.withoutRights()
	s.withoutToken()
}

// podCondition is a field of a pod's condition.
func (s *stage) podCondition(pod, kind, field string) string {
	s.t.Helper()
	return s.kubectl("get", "pod", pod, "-o", fmt.Sprintf(`jsonpath={.status.conditions[?(@.type==%q)].%s}`, kind, field))
}

// awaitCondition returns when the pod's condition names the node.
func (s *stage) awaitCondition(n tailnetNode) {
	s.t.Helper()
	want := n.DNSName
	for _, addr := range n.Addresses {
		want += " " + addr.String()
	}
	s.eventually(func() error {
		is, message := s.podCondition(n.Pod, readyCondition, "status"), s.podCondition(n.Pod, readyCondition, "message")
		if is != "True" || message != want {
			return fmt.Errorf("%w: the condition of %s is %s, %q, want True, %q", errNotYet, n.Pod, is, message, want)
		}
		return nil
	})
}

// thrownOut deletes the node's device: the condition ends, and comes back with the new one.
func (s *stage) thrownOut(before tailnetNode) {
	s.t.Helper()
	watch := s.KubectlCommand(s.ctx, "get", "pod", before.Pod, "--watch", "-o",
		fmt.Sprintf(`jsonpath={.status.conditions[?(@.type==%q)].status}{"\n"}`, readyCondition))
	seen := &watched{}
	watch.Stdout = seen
	s.must(watch.Start())
	defer func() {
		watch.Process.Kill()
		watch.Wait()
	}()
	s.eventually(func() error { return says(seen.text(), "True") })
	s.must(s.plane.Delete(s.ctx, before.NodeID))
	s.eventually(func() error { return says(seen.text(), "True\nFalse\n") })
	var after tailnetNode
	s.eventually(func() error {
		n, err := s.tailnetNodeOf(before.Pod)
		if err == nil && (n.State != "Running" || n.NodeID == before.NodeID) {
			err = fmt.Errorf("%w: %s is %s as device %s", errNotYet, n.Pod, n.State, n.NodeID)
		}
		after = n
		return err
	})
	s.awaitCondition(after)
	s.awaitReady(before.Pod)
	out := s.kubectl("describe", "pod", before.Pod)
	s.must(says(out, "TailnetLost", "the tailnet no longer knows this node", "TailnetReregistered", after.IP4().String()))
	_, events, _ := strings.Cut(out, "Events:")
	s.t.Logf("kubectl describe says:\n%s", events)
}

// withoutRights serves a pod, and shows it once another agent has them. What the last one has said is not said again,
// and what is wrong is put right.
func (s *stage) withoutRights() {
	s.t.Helper()
	agent, err := s.agent("n1")
	s.must(err)
	s.kubectl("delete", "clusterrolebinding", statusBinding)
	s.apply(podSpec{name: "dark", node: "n1", annotations: enabled()}.object())
	s.awaitReady("dark")
	dark := s.awaitRunning("dark")[0]
	s.reaches("gated", s.awaitRunning("gated")[0].IP4(), dark.IP4())
	s.logs(agent, "the ServiceAccount lacks rights", "pods/status", "deploy/components/kubernetes-status")
	if got := s.podCondition("dark", readyCondition, "status"); got != "" {
		s.t.Errorf("without rights the condition is %q", got)
	}
	s.kubectl("patch", "pod", "gated", "--subresource=status", "--type=strategic", "-p",
		fmt.Sprintf(`{"status":{"conditions":[{"type":%q,"status":"False","reason":"Wrong"}]}}`, readyCondition))
	events := s.eventsOf("gated")
	s.kubectl("create", "clusterrolebinding", statusBinding, "--clusterrole="+statusBinding, "--serviceaccount="+namespace+":tailscale-nri")
	s.kubectl("delete", "pod", "-n", namespace, agent, "--wait")
	s.agentReady(s.newAgent())
	begin := time.Now()
	for _, n := range s.awaitRunning("gated", "dark") {
		s.awaitCondition(n)
	}
	s.t.Logf("the next agent has put two conditions right within %v", time.Since(begin).Round(100*time.Millisecond))
	if after := s.eventsOf("gated"); after != events {
		s.t.Errorf("a restart of the agent has made Events of %s:\n%s\nbefore:\n%s", "gated", after, events)
	}
}

// eventsOf are the agent's of a pod, with how often each was.
func (s *stage) eventsOf(pod string) string {
	s.t.Helper()
	return s.kubectl("get", "events", "--field-selector=involvedObject.name="+pod+",reportingComponent=tailscale-nri",
		"--sort-by=.metadata.name", "-o", `jsonpath={range .items[*]}{.reason} x{.count}{"\n"}{end}`)
}

// withoutToken is n2, whose agent was told to show what it has no token for.
func (s *stage) withoutToken() {
	s.t.Helper()
	agent, err := s.agent("n2")
	s.must(err)
	log := s.kubectl("logs", "-n", s.siteOf("n2").Namespace, agent)
	s.must(says(log, "Kubernetes shows nothing of the pods' nodes", "TS_KUBERNETES_STATUS", "registered with the container runtime"))
}

// watched is what a command says while it runs.
type watched struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (w *watched) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(b)
}

func (w *watched) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}
