// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"path/filepath"
	"strings"

	"tailscale-nri/k3d/lab/kube/install"
)

// install is the plugin on the cluster.
func (s *stage) install() install.Install {
	return install.Install{Cluster: s.Cluster, Plane: s.plane, Deploy: deployDir(s)}
}

// siteOf is how a node is served.
func (s *stage) siteOf(node string) install.Site {
	s.t.Helper()
	site, err := install.SiteOf(node)
	s.must(err)
	return site
}

// deployDir is the project's deploy/.
func deployDir(s *stage) string {
	s.t.Helper()
	dir, err := filepath.Abs("../../../../deploy")
	s.must(err)
	return dir
}

// manifests has the API server validate all that a user may apply, with its warnings taken for errors.
func manifests(s *stage) {
	// Objects of a namespace are not taken before it is there.
	s.kubectl("apply", "-f", filepath.Join(deployDir(s), "base", "namespace.yaml"))
	defer s.kubectl("delete", "namespace", "tailscale-nri", "--wait")
	strict := []string{"apply", "--dry-run=server", "--validate=strict", "--warnings-as-errors"}
	overlays, err := filepath.Glob(filepath.Join(deployDir(s), "overlays", "*"))
	s.must(err)
	for _, dir := range append(overlays, filepath.Join(deployDir(s), "base")) {
		s.kubectl(append(strict, "-k", dir)...)
	}
	samples, err := filepath.Abs("../../../samples")
	s.must(err)
	secrets, err := filepath.Glob(filepath.Join(deployDir(s), "*", "*", "secret.example.yaml"))
	s.must(err)
	for _, file := range append(secrets, samples, filepath.Join(deployDir(s), "base", "secret.example.yaml")) {
		s.kubectl(append(strict, "-f", file)...)
	}
	for _, values := range [][]string{
		nil, {"failClosed=true"}, {"procNetns=true"}, {"workloadState=true"}, {"kubernetesStatus=true"}, {"workloadIdentity.clientID=x"}, {"caConfigMap=tailscale-nri-ca"},
		{"policy.rules[0].optIn=true", "profiles.prod.TS_TAGS=tag:prod"}, {"credentials.create=true", "credentials.authKey=x"},
		{"extraEnv[0].name=GODEBUG", "extraEnv[0].value=madvdontneed=1"},
	} {
		cmd := s.KubectlCommand(s.ctx, append(strict, "-f", "-")...)
		cmd.Stdin = strings.NewReader(s.chart(values))
		if out, err := cmd.CombinedOutput(); err != nil {
			s.t.Errorf("the chart with %q: %v: %s", values, err, out)
		}
	}
}

// chart renders it with values, KEY=VALUE.
func (s *stage) chart(values []string) string {
	s.t.Helper()
	args := []string{"template", "tailscale-nri", filepath.Join(deployDir(s), "chart"), "--namespace=tailscale-nri"}
	for _, v := range values {
		args = append(args, "--set="+v)
	}
	cmd := s.Lab.NetCommand(s.ctx, "helm", args...)
	cmd.Env = append(cmd.Env, s.ClientEnv()...)
	out, err := cmd.Output()
	s.must(err)
	return string(out)
}

// earlyPods are there before the plugin: one runs and is attached late, one requires the plugin and waits for it.
func earlyPods(s *stage) {
	early := podSpec{name: "early", node: "n1", annotations: enabled()}
	other := podSpec{name: "other", node: "n2", annotations: enabled()}
	gated := podSpec{name: "gated", node: "n1", annotations: enabled(requireKey, `["tailscale"]`)}
	s.apply(early.object(), other.object(), gated.object())
	s.awaitReady("early", "other")
	s.eventually(func() error {
		pod, err := s.pod("gated")
		if err != nil {
			return err
		}
		if len(pod.Status.ContainerStatuses) == 0 {
			return errNotYet
		}
		waiting := pod.Status.ContainerStatuses[0].State.Waiting
		return says(waiting.Reason+" "+waiting.Message, "CreateContainerError", `required plugin "tailscale" not present`)
	})
	s.must(s.install().Apply(s.ctx))
	s.awaitReady("gated")
	nodes := s.awaitRunning("early", "other", "gated")
	for _, n := range nodes {
		s.reachedFromPeer(n.IP4())
	}
	for _, site := range install.Sites() {
		agent, err := s.agent(site.Node)
		s.must(err)
		log := s.kubectl("logs", "-n", site.Namespace, agent)
		s.must(says(log, "registered with the container runtime", "runtime=containerd", "version=2."))
	}
}
