// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"tailscale-nri/k3d/lab/control"
	"tailscale-nri/k3d/lab/kube"
)

// site is how the plugin is deployed on one node, as its user would write it: an overlay over what deploy/ has.
type site struct {
	node, namespace, cluster string
	kustomization            string // @DEPLOY@ stands for deploy/
}

const (
	federatedClient = "lab-federated"
	credentials     = "tailscale-nri-credentials"
)

// sites are n1, with an OAuth client in a Secret and pods that fail closed, and n2, where only /proc leads to the pods'
// network namespaces, and where no secret is stored.
var sites = []site{
	{node: "n1", namespace: "tailscale-nri", cluster: "lab1", kustomization: `
resources: ["@DEPLOY@/overlays/fail-closed"]
`},
	{node: "n2", namespace: "tailscale-nri-n2", cluster: "lab2", kustomization: `
namespace: tailscale-nri-n2
resources: ["@DEPLOY@/base"]
components: ["@DEPLOY@/components/proc-netns", "@DEPLOY@/components/workload-identity"]
`},
}

// siteOf is the node's.
func siteOf(node string) site {
	for _, site := range sites {
		if site.node == node {
			return site
		}
	}
	panic("no site " + node)
}

// write writes the site's overlay and returns its directory.
func (s *stage) write(site site) string {
	s.t.Helper()
	dir := filepath.Join(s.Lab.Dir(), "deploy", site.node)
	s.must(os.MkdirAll(dir, 0o755))
	deploy, err := filepath.Rel(dir, deployDir(s)) // kustomize takes no absolute paths
	s.must(err)
	config := map[string]string{
		"CLUSTER_NAME": site.cluster, "TS_LOGIN_SERVER": s.plane.ControlURL, "TS_API_URL": s.plane.APIURL, "LOG_LEVEL": "debug",
	}
	if site.node == "n2" {
		config["TS_OAUTH_CLIENT_ID"] = federatedClient
	}
	var literals strings.Builder
	for key, value := range config {
		fmt.Fprintf(&literals, "  - %s=%s\n", key, value)
	}
	text := fmt.Sprintf(`apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
%s
configMapGenerator:
- name: tailscale-nri
  namespace: tailscale-nri
  behavior: merge
  literals:
%s
generatorOptions:
  disableNameSuffixHash: true
patches:
- target: {kind: DaemonSet}
  patch: '[{"op": "add", "path": "/spec/template/spec/nodeSelector/kubernetes.io~1hostname", "value": %q}]'
`, strings.ReplaceAll(site.kustomization, "@DEPLOY@", deploy), literals.String(), site.node)
	s.must(os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600))
	return dir
}

// deployDir is the project's deploy/.
func deployDir(s *stage) string {
	s.t.Helper()
	dir, err := filepath.Abs("../../../../deploy")
	s.must(err)
	return dir
}

// deploy does what the README says: the image, the manifests, the Secret.
func (s *stage) deploy() {
	s.t.Helper()
	s.must(s.trust())
	archive := filepath.Join(filepath.Dir(filepath.Dir(s.Lab.ToolPath())), "image-out", "tailscale-nri-"+runtime.GOARCH+".tar")
	for _, node := range s.Nodes {
		s.must(node.ImportArchive(s.ctx, archive))
	}
	for _, site := range sites {
		s.kubectl("apply", "-k", s.write(site))
	}
	s.makeSecret()
	for _, site := range sites {
		s.kubectl("rollout", "status", "-n", site.namespace, "daemonset/tailscale-nri", "--timeout="+patience.String())
	}
}

func (s *stage) makeSecret() {
	s.t.Helper()
	s.kubectl("create", "secret", "generic", "-n", siteOf("n1").namespace, credentials,
		"--from-literal=TS_OAUTH_CLIENT_ID="+s.plane.OAuthClientID, "--from-literal=TS_OAUTH_CLIENT_SECRET="+s.plane.OAuthClientSecret)
}

// trust has the lab's API take tokens of the cluster's ServiceAccounts, as an admin does who makes a federated identity.
func (s *stage) trust() error {
	keys, err := s.Kubectl(s.ctx, "get", "--raw", "/openid/v1/jwks")
	if err != nil {
		return err
	}
	return s.plane.TrustIssuer(s.ctx, control.Issuer{
		URL: kube.Issuer, JWKS: json.RawMessage(keys), ClientID: federatedClient,
		Subject: "system:serviceaccount:" + siteOf("n2").namespace + ":tailscale-nri",
	})
}

// removePlugin deletes what deploy applied, and the Secret.
func (s *stage) removePlugin() {
	s.t.Helper()
	for _, site := range sites {
		s.kubectl("delete", "-k", s.write(site), "--wait")
	}
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
	chart := s.Lab.NetCommand(s.ctx, "helm", "template", "tailscale-nri", filepath.Join(deployDir(s), "chart"), "--namespace=tailscale-nri")
	rendered, err := chart.Output()
	s.must(err)
	cmd := s.KubectlCommand(s.ctx, append(strict, "-f", "-")...)
	cmd.Stdin = strings.NewReader(string(rendered))
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Errorf("the chart: %v: %s", err, out)
	}
	samples, err := filepath.Abs("../../../samples")
	s.must(err)
	s.kubectl(append(strict, "-f", samples)...)
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
	s.deploy()
	s.awaitReady("gated")
	nodes := s.awaitRunning("early", "other", "gated")
	for _, n := range nodes {
		s.reachedFromPeer(n.IP4())
	}
	for _, site := range sites {
		agent, err := s.agent(site.node)
		s.must(err)
		log := s.kubectl("logs", "-n", site.namespace, agent)
		s.must(says(log, "registered with the container runtime", "runtime=containerd", "version=v2."))
	}
}
