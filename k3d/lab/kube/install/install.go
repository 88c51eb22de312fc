// SPDX-License-Identifier: BSD-3-Clause

// Package install deploys the plugin on a lab's cluster as its users do: the image that make image has made, the
// manifests of deploy/ under an overlay of one's own, and a Secret.
//
// There is one Site for each node, since the nodes differ: n1 runs the base with an OAuth client, and its pods fail
// closed and are shown in Kubernetes; on n2 only /proc leads to the pods' network namespaces, no secret is stored, since
// the plugin comes in with a token of its ServiceAccount, and Kubernetes is to show the pods' nodes without the rights
// and the token for that.
//
// The package writes its overlays into the lab's directory, and nothing into deploy/. It does not build the image.
package install

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/control"
	"tailscale-nri/k3d/lab/kube"
)

const (
	// Name is that of the DaemonSet, its ConfigMap and its ServiceAccount.
	Name = "tailscale-nri"
	// Credentials is the name of the Secret.
	Credentials = "tailscale-nri-credentials"

	federatedClient = "lab-federated"
	rollPatience    = "3m"
)

// Site is how the plugin is deployed for one node.
type Site struct {
	Node, Namespace string
	Cluster         string            // CLUSTER_NAME
	overlay         string            // YAML, in which @DEPLOY@ stands for deploy/
	config          map[string]string // more of the ConfigMap
}

// Sites are those of all nodes.
func Sites() []Site {
	return []Site{
		{Node: "n1", Namespace: "tailscale-nri", Cluster: "lab1", overlay: `resources: ["@DEPLOY@/overlays/fail-closed"]
components: ["@DEPLOY@/components/kubernetes-status"]
`},
		{Node: "n2", Namespace: "tailscale-nri-n2", Cluster: "lab2", overlay: `namespace: tailscale-nri-n2
resources: ["@DEPLOY@/base"]
components: ["@DEPLOY@/components/proc-netns", "@DEPLOY@/components/workload-identity"]
`, config: map[string]string{"TS_OAUTH_CLIENT_ID": federatedClient, "TS_KUBERNETES_STATUS": "true"}},
	}
}

// SiteOf is a node's.
func SiteOf(node string) (Site, error) {
	for _, site := range Sites() {
		if site.Node == node {
			return site, nil
		}
	}
	return Site{}, fmt.Errorf("no site for node %q", node)
}

// Install is the plugin on a cluster.
type Install struct {
	Cluster *kube.Cluster
	Plane   *lab.ControlPlane
	Deploy  string // the project's deploy/, an absolute path
	Image   string // the image's tar file; "" means the one that make lab-image has made
}

// Apply imports the image on all nodes, applies all sites' manifests and makes the Secret. It returns when all nodes
// are served.
func (i Install) Apply(ctx context.Context) error {
	if err := i.trust(ctx); err != nil {
		return err
	}
	for _, node := range i.Cluster.Nodes {
		if err := node.ImportArchive(ctx, i.image()); err != nil {
			return fmt.Errorf("importing the image (make lab-image makes it): %w", err)
		}
	}
	for _, site := range Sites() {
		dir, err := i.Write(site)
		if err != nil {
			return err
		}
		if _, err := i.Cluster.Kubectl(ctx, "apply", "-k", dir); err != nil {
			return err
		}
	}
	if err := i.makeSecret(ctx); err != nil {
		return err
	}
	return i.AwaitRolled(ctx)
}

// image is the tar file to import.
func (i Install) image() string {
	if i.Image != "" {
		return i.Image
	}
	build := filepath.Dir(filepath.Dir(i.Cluster.Lab.ToolPath()))
	return filepath.Join(build, "lab-image", "tailscale-nri-"+runtime.GOARCH+".tar")
}

// makeSecret hands the key over in a file, so that it is neither in the process list nor in an error.
func (i Install) makeSecret(ctx context.Context) error {
	site := Sites()[0]
	secret, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"name": Credentials, "namespace": site.Namespace},
		"stringData": map[string]string{
			"TS_OAUTH_CLIENT_ID": i.Plane.OAuthClientID, "TS_OAUTH_CLIENT_SECRET": i.Plane.OAuthClientSecret,
		},
	})
	if err != nil {
		return err
	}
	return i.Cluster.Apply(ctx, string(secret))
}

// AwaitRolled returns when all nodes run what was applied last.
func (i Install) AwaitRolled(ctx context.Context) error {
	for _, site := range Sites() {
		_, err := i.Cluster.Kubectl(ctx, "rollout", "status", "-n", site.Namespace, "daemonset/"+Name, "--timeout="+rollPatience)
		if err != nil {
			return err
		}
	}
	return nil
}

// Remove deletes all that Apply has applied, and waits for that.
func (i Install) Remove(ctx context.Context) error {
	for _, site := range Sites() {
		dir, err := i.Write(site)
		if err != nil {
			return err
		}
		if _, err := i.Cluster.Kubectl(ctx, "delete", "-k", dir, "--ignore-not-found", "--wait"); err != nil {
			return err
		}
	}
	return nil
}

// Write writes a site's overlay and returns its directory.
func (i Install) Write(site Site) (dir string, err error) {
	dir = filepath.Join(i.Cluster.Lab.Dir(), "deploy", site.Node)
	deploy, err := filepath.Rel(dir, i.Deploy) // kustomize takes no absolute paths
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("writing the overlay of node %s: %w", site.Node, err)
	}
	text := fmt.Sprintf(kustomization, strings.ReplaceAll(site.overlay, "@DEPLOY@", deploy), i.literals(site), site.Node)
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		return "", fmt.Errorf("writing the overlay of node %s: %w", site.Node, err)
	}
	return dir, nil
}

const kustomization = `apiVersion: kustomize.config.k8s.io/v1beta1
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
`

// literals are a site's settings, in YAML.
func (i Install) literals(site Site) string {
	config := map[string]string{
		"CLUSTER_NAME": site.Cluster, "TS_LOGIN_SERVER": i.Plane.ControlURL, "TS_API_URL": i.Plane.APIURL, "LOG_LEVEL": "debug",
	}
	maps.Copy(config, site.config)
	var text strings.Builder
	for _, key := range slices.Sorted(maps.Keys(config)) {
		fmt.Fprintf(&text, "  - %s=%s\n", key, config[key])
	}
	return text.String()
}

// trust has the lab's API take tokens of n2's ServiceAccount, as an admin does who makes a federated identity.
func (i Install) trust(ctx context.Context) error {
	keys, err := i.Cluster.Kubectl(ctx, "get", "--raw", "/openid/v1/jwks")
	if err != nil {
		return err
	}
	return i.Plane.TrustIssuer(ctx, control.Issuer{
		URL: kube.Issuer, JWKS: json.RawMessage(keys), ClientID: federatedClient,
		Subject: "system:serviceaccount:" + Sites()[1].Namespace + ":" + Name,
	})
}
