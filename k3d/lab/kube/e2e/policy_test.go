// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"fmt"
	"strings"
)

// policyFile has the kubelet mount a policy file. A pod gets its node by its label, another is refused
// where its user looks, and a changed policy counts without another start of the process.
func policyFile(s *stage) {
	agent, err := s.agent("n1")
	s.must(err)
	starts := func() int {
		s.t.Helper()
		out, err := s.Kubectl(s.ctx, "logs", "-n", namespace, agent)
		s.must(err)
		return strings.Count(out, "msg=starting ")
	}
	const rule = "rules:\n- name: %s\n  namespaces: [default]\n  labels: {node: \"*\"}\n  optIn: true\n"
	const file = "/etc/tailscale-nri/policy.yaml"
	s.setKeys(object{"policy.yaml": fmt.Sprintf(rule, "labelled"), "TS_POLICY_FILE": file})
	defer s.setKeys(object{"policy.yaml": nil, "TS_POLICY_FILE": ""})
	s.logs(agent, "msg=starting ", "policy="+file, "rules=1")
	s.agentReady(agent)

	labelled := map[string]string{"node": "yes"}
	s.apply(podSpec{name: "labelled", node: "n1", labels: labelled}.object(), podSpec{name: "plain", node: "n1"}.object(),
		podSpec{name: "forbidden", node: "n1", labels: labelled, annotations: map[string]string{"tailscale.com/tags": "tag:db"}}.object())
	s.awaitReady("labelled", "plain")
	is := s.awaitRunning("labelled")[0]
	s.reachedFromPeer(is.IP4())
	s.eventually(func() error {
		out, err := s.Kubectl(s.ctx, "describe", "pod", "forbidden")
		if err != nil {
			return err
		}
		return says(out, `annotation tailscale.com/tags is "tag:db"`, "rule 1 (labelled) of "+file, "FailedCreatePodSandBox")
	})

	before := starts()
	s.setKey("policy.yaml", fmt.Sprintf(rule, "wider")+"  allow: {tags: [\"tag:d*\"]}\n")
	s.logs(agent, "the policy has changed")
	s.awaitReady("forbidden") // at the kubelet's next try
	s.awaitRunning("forbidden")
	s.setKey("policy.yaml", "rules:\n- nam: slip\n")
	s.logs(agent, file+", line 2", "unknown key", "going on with the old one")
	s.agentReady(agent)
	s.reachedFromPeer(is.IP4())
	if after := starts(); after != before {
		s.t.Errorf("the process was started %d times, was %d", after, before)
	}
	s.setKey("policy.yaml", "")
	s.awaitRunning("labelled") // by no rule any more
}
