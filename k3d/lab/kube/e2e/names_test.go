// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"fmt"
	"strings"

	"tailscale-nri/k3d/lab"
)

// names has a pod's containers, its init container first, resolve the tailnet's names next to those of the cluster; the
// cluster's alone while the plugin is away; and both again when it is back.
func names(s *stage) {
	s.apply(podSpec{name: "found", node: "n2", annotations: enabled()}.object(), podSpec{name: "plain", node: "n1"}.object())
	s.awaitReady("found", "plain")
	found := s.awaitRunning("found")[0]
	asks := podSpec{
		name: "asks", node: "n1", annotations: enabled("tailscale.com/dns", "true", "tailscale.com/wait", "60s"),
		more: object{"restartPolicy": "Never", "initContainers": []object{{
			"name": "init", "image": lab.ToolImage, "imagePullPolicy": "Never", "args": []string{"lookup", "-timeout", askPatience, found.DNSName},
		}}},
	}
	s.apply(asks.object())
	s.awaitReady("asks") // never, if its init container has not found the name
	if out := s.kubectl("logs", "asks", "-c", "init"); strings.TrimSpace(out) != found.IP4().String() {
		s.t.Errorf("in the init container %s is %q, want %v", found.DNSName, out, found.IP4())
	}
	s.keepsOptions("asks", "plain")

	const service = "10.96.0.1" // of kubernetes
	resolves := func(name, want string) {
		s.t.Helper()
		s.eventually(func() error {
			out, err := s.tool("asks", "lookup", name)
			if got := strings.TrimSpace(out); err != nil && want != "" || got != want {
				return fmt.Errorf("%w: %s is %q (%v), want %q", errNotYet, name, got, err, want)
			}
			return nil
		})
	}
	both := func() {
		s.t.Helper()
		resolves(found.DNSName, found.IP4().String())
		resolves(found.name(), found.IP4().String())
		for _, name := range []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc.cluster.local"} {
			resolves(name, service)
		}
	}
	both()
	back := s.takePluginAway()
	resolves("kubernetes.default", service)
	resolves(found.DNSName, "")
	back()
	s.awaitRunning("asks")
	both()
}

// keepsOptions fails unless a pod's resolv.conf has another's options, and its search domains before others.
func (s *stage) keepsOptions(pod, other string) {
	s.t.Helper()
	lines := func(pod string) map[string]string {
		out, err := s.tool(pod, "cat", "/etc/resolv.conf")
		s.must(err)
		by := map[string]string{}
		for line := range strings.Lines(out) {
			key, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
			by[key] = rest
		}
		return by
	}
	is, want := lines(pod), lines(other)
	if is["options"] != want["options"] || !strings.Contains(is["options"], "ndots:5") || !strings.HasPrefix(is["search"], want["search"]+" ") {
		s.t.Errorf("pod %s has the resolv.conf %q, pod %s %q", pod, is, other, want)
	}
}

// takePluginAway ends the plugin on n1. What it returns has it come back.
func (s *stage) takePluginAway() (back func()) {
	s.t.Helper()
	const path = "/spec/template/spec/nodeSelector/kubernetes.io~1hostname"
	move := func(to string) {
		s.t.Helper()
		s.kubectl("patch", "daemonset", "-n", namespace, "tailscale-nri", "--type=json", "-p",
			fmt.Sprintf(`[{"op":"replace","path":%q,"value":%q}]`, path, to))
	}
	agent, err := s.agent("n1")
	s.must(err)
	move("nowhere")
	s.kubectl("wait", "--for=delete", "-n", namespace, "pod/"+agent, "--timeout="+patience.String())
	return func() {
		s.t.Helper()
		move("n1")
	}
}
