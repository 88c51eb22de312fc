// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"encoding/json"
	"strings"

	"tailscale-nri/k3d/lab/kube/install"
)

// finding is one of the doctor's.
type finding struct{ Check, Result, Seen, Remedy string }

// doctor asks the doctor on a node as a user does, in the container that the manifests make: with its environment,
// capabilities, seccomp profile and mounts. It fails if the doctor finds that something fails.
func (s *stage) doctor(node string) (findings []finding) {
	s.t.Helper()
	agent, err := s.agent(node)
	s.must(err)
	out, err := s.Kubectl(s.ctx, "exec", "-n", s.siteOf(node).Namespace, agent, "--", "/tailscale-nri", "doctor", "-json")
	if err != nil {
		s.t.Errorf("the doctor on %s: %v\n%s", node, err, out)
	}
	s.must(json.Unmarshal([]byte(out), &findings))
	return findings
}

// seen wants a finding of that check and result, whose text holds text.
func (s *stage) seen(findings []finding, check, result, text string) {
	s.t.Helper()
	for _, f := range findings {
		if f.Check == check && f.Result == result && strings.Contains(f.Seen, text) {
			return
		}
	}
	s.t.Errorf("want %s: %s, %q; got %+v", check, result, text, findings)
}

// healthy has a pod on each node, and a doctor that finds nothing to remedy there.
func healthy(s *stage) {
	s.pair("a", "b")
	for _, site := range install.Sites() {
		findings := s.doctor(site.Node)
		for _, f := range findings {
			if f.Remedy != "" {
				s.t.Errorf("%s: %+v", site.Node, f)
			}
		}
		s.seen(findings, "NRI", "ok", "it runs the plugin's pod, so it is the kubelet's")
		s.seen(findings, "credentials", "ok", "was minted, and deleted unused")
		s.seen(findings, "capabilities", "ok", "NET_BROADCAST")
		s.seen(findings, "kernel features", "ok", "packet socket with offloads")
		s.seen(findings, "leftovers", "ok", "1 links")
	}
}
