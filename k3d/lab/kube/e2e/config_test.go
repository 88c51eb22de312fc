// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"

	"tailscale-nri/k3d/lab/kube/install"
)

// badConfiguration makes the mistakes that a user makes, and reads what is said of each where he looks for it. The pod
// that is there is reached all the time, and one that is new comes up when the mistake is fixed.
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
	s.setKeys(object{key: value})
}

// setKeys sets keys of the ConfigMap on n1 at once, or removes them.
func (s *stage) setKeys(values object) {
	s.t.Helper()
	patch, err := json.Marshal(object{"data": values})
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
	s.logs(agent, "unknown key", "did you mean CLUSTER_NAME", "waiting until it is fixed")
	s.setKey("CLUSTER_NAM", nil)
	s.agentReady(agent)
	s.awaitRunning("a")
	still()
}

// wrongSecret is what the DaemonSet names after an edit.
func (s *stage) wrongSecret(still func()) {
	s.t.Helper()
	const path = "/spec/template/spec/volumes/1/projected/sources/1/secret/name"
	patch := fmt.Sprintf(`[{"op":"test","path":%q,"value":%q},{"op":"replace","path":%q,"value":"mistyped"}]`, path, install.Credentials, path)
	s.badRoll(patch, "no credentials", still)
}

// noSocket is where the DaemonSet says that containerd listens.
func (s *stage) noSocket(still func()) {
	s.t.Helper()
	const socket = "/var/run/nri/none.sock"
	patch := fmt.Sprintf(`[{"op":"add","path":"/spec/template/spec/containers/0/env/-","value":{"name":"NRI_SOCKET","value":%q}}]`, socket)
	s.badRoll(patch, "nothing listens on the NRI socket "+socket, still)
}

// badRoll edits the DaemonSet. The roll stops at its first pod, whose readiness and log say why, and the one that serves
// goes on.
func (s *stage) badRoll(patch, why string, still func()) {
	s.t.Helper()
	old, err := s.agent("n1")
	s.must(err)
	s.kubectl("patch", "daemonset", "-n", namespace, "tailscale-nri", "--type=json", "-p", patch)
	var agent string
	s.eventually(func() error {
		if agent = s.newAgent(); agent == old {
			return errNotYet
		}
		return nil
	})
	s.unready(agent, why)
	s.logs(agent, why)
	if serving, err := s.agent("n1"); err != nil || serving != old {
		s.t.Errorf("pod %s serves (%v), want the old one, %s", serving, err, old)
	}
	still()
	s.kubectl("rollout", "undo", "-n", namespace, "daemonset/tailscale-nri")
	s.kubectl("rollout", "status", "-n", namespace, "daemonset/tailscale-nri", "--timeout="+patience.String())
	still()
}

// absent is the plugin, for a while: a pod that comes fails closed, by the policy's annotation, and starts by itself when
// the plugin is back.
func absent(s *stage) {
	back := s.takePluginAway()
	s.apply(podSpec{name: "closed", node: "n1", annotations: enabled()}.object(), podSpec{name: "open", node: "n1"}.object())
	s.awaitReady("open")
	s.eventually(func() error {
		out, err := s.Kubectl(s.ctx, "describe", "pod", "closed")
		if err != nil {
			return err
		}
		return says(out, "CreateContainerError", `required plugin "tailscale" not present`)
	})
	back()
	s.awaitReady("closed")
	s.reachedFromPeer(s.awaitRunning("closed")[0].IP4())
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
