// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"

	"tailscale-nri/k3d/lab/kube/install"
)

// badConfiguration makes the mistakes that a user makes, and reads what is said of each where he looks for it. The pod
// that is there is reached all the time, and one that is new comes up when the mistake is mended.
func badConfiguration(s *stage) {
	s.apply(podSpec{name: "a", node: "n1", annotations: enabled()}.object())
	s.awaitReady("a")
	a := s.awaitRunning("a")[0]
	still := func() { s.t.Helper(); s.reachedFromPeer(a.IP4()) }
	s.unknownKey(still)
	s.wrongSecret(still)
	s.noSocket(still)
}

// setKey sets a key of the ConfigMap on n1, or removes it.
func (s *stage) setKey(key string, value any) {
	s.t.Helper()
	patch, err := json.Marshal(object{"data": object{key: value}})
	s.must(err)
	s.kubectl("patch", "configmap", "-n", namespace, "tailscale-nri", "--type=merge", "-p", string(patch))
}

// unknownKey is in the ConfigMap: the process that runs goes on and says so, one that is started does not come to serve.
func (s *stage) unknownKey(still func()) {
	s.t.Helper()
	agent, err := s.agent("n1")
	s.must(err)
	s.setKey("CLUSTER_NAM", "other")
	s.logs(agent, "unknown key", "CLUSTER_NAM", "did you mean CLUSTER_NAME", "going on with the old one")
	still()
	s.kubectl("delete", "pod", "-n", namespace, agent, "--wait")
	agent = s.newAgent()
	s.unready(agent, `unknown key "CLUSTER_NAM"`)
	s.logs(agent, "unknown key", "did you mean CLUSTER_NAME", "waiting for a better one")
	s.setKey("CLUSTER_NAM", nil)
	s.agentReady(agent)
	s.awaitRunning("a")
	still()
}

// wrongSecret is what the DaemonSet names after an edit: the roll stops at the first pod, and the old one serves on.
func (s *stage) wrongSecret(still func()) {
	s.t.Helper()
	old, err := s.agent("n1")
	s.must(err)
	const path = "/spec/template/spec/volumes/0/projected/sources/1/secret/name"
	s.kubectl("patch", "daemonset", "-n", namespace, "tailscale-nri", "--type=json", "-p",
		fmt.Sprintf(`[{"op":"test","path":%q,"value":%q},{"op":"replace","path":%q,"value":"mistyped"}]`, path, install.Credentials, path))
	var agent string
	s.eventually(func() error {
		agent = s.newAgent()
		if agent == old {
			return errNotYet
		}
		return nil
	})
	s.unready(agent, "no credentials")
	s.logs(agent, "no credentials", "Secret")
	if serving, err := s.agent("n1"); err != nil || serving != old {
		s.t.Errorf("pod %s serves (%v), want the old one, %s", serving, err, old)
	}
	still()
	s.kubectl("rollout", "undo", "-n", namespace, "daemonset/tailscale-nri")
	s.kubectl("rollout", "status", "-n", namespace, "daemonset/tailscale-nri", "--timeout="+patience.String())
	still()
}

// noSocket is where the plugin is told to look: pods that are there are served, and one that is new, which fails closed,
// waits.
func (s *stage) noSocket(still func()) {
	s.t.Helper()
	agent, err := s.agent("n1")
	s.must(err)
	s.setKey("NRI_SOCKET", "/var/run/nri/none.sock")
	s.unready(agent, "/var/run/nri/none.sock")
	s.logs(agent, "nothing listens on the NRI socket /var/run/nri/none.sock")
	still()
	s.apply(podSpec{name: "late", node: "n1", annotations: enabled()}.object())
	s.eventually(func() error {
		out, err := s.Kubectl(s.ctx, "describe", "pod", "late")
		if err != nil {
			return err
		}
		return says(out, `required plugin "tailscale" not present`)
	})
	s.setKey("NRI_SOCKET", nil)
	s.agentReady(agent)
	s.awaitReady("late")
	s.reachedFromPeer(s.awaitRunning("late")[0].IP4())
}

// newAgent is the youngest pod of the plugin on n1, ready or not.
func (s *stage) newAgent() (name string) {
	s.t.Helper()
	s.eventually(func() error {
		out, err := s.Kubectl(s.ctx, "get", "pods", "-n", namespace, "-l", "app.kubernetes.io/name=tailscale-nri",
			"--sort-by=.metadata.creationTimestamp", "-o", "jsonpath={.items[-1:].metadata.name}")
		if err == nil && out == "" {
			return errNotYet
		}
		name = out
		return err
	})
	return name
}

// unready returns when kubectl describe says that the agent is not ready, and why.
func (s *stage) unready(agent, why string) {
	s.t.Helper()
	s.eventually(func() error {
		out, err := s.Kubectl(s.ctx, "describe", "pod", "-n", namespace, agent)
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if strings.Contains(line, "Readiness probe failed") && strings.Contains(line, why) {
				return says(out, "ContainersReady             False")
			}
		}
		return says(out, "Readiness probe failed: …"+why)
	})
}

// logs returns when the agent's log has a line that holds all of these texts.
func (s *stage) logs(agent string, texts ...string) {
	s.t.Helper()
	s.eventually(func() error {
		out, err := s.Kubectl(s.ctx, "logs", "-n", namespace, agent)
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if says(line, texts...) == nil {
				return nil
			}
		}
		return says(out, texts...)
	})
}

func (s *stage) agentReady(agent string) {
	s.t.Helper()
	s.kubectl("wait", "-n", namespace, "--for=condition=Ready", "--timeout="+patience.String(), "pod/"+agent)
}
