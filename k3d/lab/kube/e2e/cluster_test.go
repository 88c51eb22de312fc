// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"testing"

	"tailscale-nri/k3d/lab/kube/install"
)

func TestCluster(t *testing.T) {
	s := open(t)
	s.play("the API server takes the manifests without a warning", manifests)
	before := s.look()
	s.play("pods that were there before the plugin get their nodes", earlyPods)
	for _, site := range install.Sites() {
		if _, err := s.agent(site.Node); err != nil {
			t.Fatalf("no other test can say anything: %v", err)
		}
	}
	s.play("a pod that did not opt in is as it would be without the plugin", before.untouched)
	s.play("pods of both nodes and a peer reach each other", reach)
	s.play("the doctor finds nothing to remedy", healthy)
	s.play("kubectl tailscale-nri shows the pods of all hosts", kubectlPlugin)
	s.play("services, DNS and probes work over eth0", services)
	s.play("a rollout's pods have new identities, a StatefulSet's keeps its name, a Job ends", workloads)
	s.play("an invalid annotation shows in kubectl describe", invalidAnnotation)
	s.play("a policy of labels and tags counts without a restart", policyFile)
	s.play("containers wait for their node, and read it", containers)
	s.play("containers find the tailnet's names and the cluster's", names)
	s.play("the agent looks into a pod's node", podTools)
	s.play("Kubernetes shows what becomes of pods' nodes", kubernetesStatus)
	s.play("a pod forwards to another for peers on two other hosts", routers)
	s.play("a pod leaves by an exit node, and its cluster stays", exitNode)
	s.play("a pod in a user namespace of its own", userNamespace)
	s.play("with a tailscaled of the node's own", hostTailscaled)
	s.play("the DaemonSet is rolled under traffic", roll)
	s.play("a configuration that is wrong says so and costs no pod", badConfiguration)
	s.play("a pod that fails closed waits for the plugin", absent)
	s.play("containerd, the kubelet, and a node as a whole are killed", nodeFailures)
	s.play("the DaemonSet is rolled past a node that is down", deadNode)
	s.play("the manifests are deleted while an annotated pod runs", wrongOrder)
	s.play("nothing is left of the plugin on the nodes", uninstall)
	s.play("the Helm chart, with a static key", helmChart)
}
