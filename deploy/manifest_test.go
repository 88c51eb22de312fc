// SPDX-License-Identifier: BSD-3-Clause

package deploy

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// renderings are the base and every overlay, and the component that none of
// them has on. That the chart renders the same, chart_test.go sees to.
func renderings(t *testing.T) map[string]objects {
	t.Helper()
	all := map[string]objects{"base": kustomize(t, "base")}
	all["private-ca"] = kustomize(t, fill(t, "private-ca", overlays()["private-ca"]))
	for _, name := range dirs(t, "overlays") {
		all[name] = kustomize(t, filepath.Join("overlays", name))
	}
	return all
}

// TestPrivileges holds all that the pod may do on its node against what is
// promised, word by word: what is added here has to be meant.
func TestPrivileges(t *testing.T) {
	for name, all := range renderings(t) {
		t.Run(name, func(t *testing.T) {
			caps := []any{"NET_ADMIN", "NET_BROADCAST", "NET_RAW", "SYS_ADMIN"}
			paths := []string{"/var/lib/tailscale-nri", "/var/run/netns", "/var/run/nri"}
			var hostPID any
			if name == "k3d" {
				caps = append(caps, "SYS_PTRACE")
				paths = slices.DeleteFunc(paths, func(s string) bool { return s == "/var/run/netns" })
				hostPID = true
			}
			spec := all.podSpec(t)
			want := map[string]any{
				"runAsUser":                float64(0),
				"readOnlyRootFilesystem":   true,
				"allowPrivilegeEscalation": false,
				"capabilities":             map[string]any{"drop": []any{"ALL"}, "add": caps},
				"seccompProfile":           map[string]any{"type": "RuntimeDefault"},
				"seLinuxOptions":           map[string]any{"type": "spc_t"},
			}
			if diff := cmp.Diff(want, at(t, all.container(t), "securityContext")); diff != "" {
				t.Errorf("securityContext (-want +got):\n%s", diff)
			}
			if n := len(at(t, spec, "containers").([]any)); n != 1 || spec["initContainers"] != nil {
				t.Errorf("%d containers, init containers %v; one and none are promised", n, spec["initContainers"])
			}
			if spec["securityContext"] != nil || spec["hostIPC"] != nil || spec["hostPID"] != hostPID || spec["hostNetwork"] != true {
				t.Errorf("securityContext %v, hostIPC %v, hostPID %v, hostNetwork %v",
					spec["securityContext"], spec["hostIPC"], spec["hostPID"], spec["hostNetwork"])
			}
			if diff := cmp.Diff(paths, hostPaths(t, spec)); diff != "" {
				t.Errorf("host paths (-want +got):\n%s", diff)
			}
			if spec["automountServiceAccountToken"] != false {
				t.Error("a ServiceAccount token is mounted")
			}
		})
	}
}

// TestVirtualNodes: nodes that run no containers of their own get no agent, which would stay Pending there.
func TestVirtualNodes(t *testing.T) {
	for name, all := range renderings(t) {
		terms := at(t, all.podSpec(t), "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms").([]any)
		for label, value := range map[string]string{
			"type": "virtual-kubelet", "eks.amazonaws.com/compute-type": "fargate", "liqo.io/type": "virtual-node",
		} {
			for _, term := range terms { // of which one is enough
				if !slices.ContainsFunc(at(t, term, "matchExpressions").([]any), func(e any) bool {
					return at(t, e, "key") == label && at(t, e, "operator") == "NotIn" && slices.Contains(at(t, e, "values").([]any), any(value))
				}) {
					t.Errorf("%s: a node with %s=%s gets an agent", name, label, value)
				}
			}
		}
	}
}

// TestStatePath: the runtime, on the host, runs hooks and mounts sockets by the path
// that the agent has given it.
func TestStatePath(t *testing.T) {
	for name, all := range renderings(t) {
		inside := map[string]any{}
		for _, m := range at(t, all.container(t), "volumeMounts").([]any) {
			inside[at(t, m, "name").(string)] = at(t, m, "mountPath")
		}
		for _, v := range at(t, all.podSpec(t), "volumes").([]any) {
			if at(t, v, "name") != "state" {
				continue
			}
			if host := at(t, v, "hostPath", "path"); host != inside["state"] || host == nil {
				t.Errorf("%s: the state directory is %v on the host and %v in the agent", name, host, inside["state"])
			}
			delete(inside, "state")
		}
		if inside["state"] != nil {
			t.Errorf("%s: the state directory is not the host's", name)
		}
	}
}

// hostPaths are the directories of the node that the pod sees, sorted.
func hostPaths(t *testing.T, spec map[string]any) []string {
	t.Helper()
	var paths []string
	for _, v := range at(t, spec, "volumes").([]any) {
		if h := v.(map[string]any)["hostPath"]; h != nil {
			paths = append(paths, at(t, h, "path").(string))
		}
	}
	slices.Sort(paths)
	return paths
}

// clusters are the kinds that are in no namespace.
var clusters = []string{
	"Namespace", "MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding", "ClusterRole", "ClusterRoleBinding",
	"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
}

// TestKinds: a Secret, a Role or a binding is only where devices are kept in Secrets or
// Kubernetes shows the nodes. Objects of the whole cluster are only in the latter and in
// the policy of fail-closed.
func TestKinds(t *testing.T) {
	for name, all := range renderings(t) {
		want := []string{
			"ConfigMap/tailscale-nri", "DaemonSet/tailscale-nri", "Namespace/tailscale-nri",
			"ResourceQuota/tailscale-nri", "ServiceAccount/tailscale-nri",
		}
		if name == "fail-closed" {
			want = append(want, "MutatingAdmissionPolicy/tailscale-nri-fail-closed", "MutatingAdmissionPolicyBinding/tailscale-nri-fail-closed")
			slices.Sort(want)
		}
		if name == "workload-state" {
			want = append(want, "Role/tailscale-nri-workload-state", "RoleBinding/tailscale-nri-workload-state")
			slices.Sort(want)
		}
		if name == "kubernetes-status" {
			for _, kind := range []string{"ClusterRole", "ClusterRoleBinding", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"} {
				want = append(want, kind+"/tailscale-nri-kubernetes-status")
			}
			slices.Sort(want)
		}
		if diff := cmp.Diff(want, slices.Sorted(maps.Keys(all))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		for object, o := range all {
			namespaced := !slices.Contains(clusters, o["kind"].(string))
			if got := at(t, o, "metadata").(map[string]any)["namespace"]; namespaced && got != "tailscale-nri" || !namespaced && got != nil {
				t.Errorf("%s: %s is in namespace %v", name, object, got)
			}
		}
	}
}

// TestLabels: the recommended ones are on everything, and the selector finds
// the pods.
func TestLabels(t *testing.T) {
	want := map[string]any{
		"app.kubernetes.io/name":      "tailscale-nri",
		"app.kubernetes.io/component": "node-agent",
		"app.kubernetes.io/part-of":   "tailscale-nri",
	}
	for name, all := range renderings(t) {
		for object, o := range all {
			got := maps.Clone(at(t, o, "metadata", "labels").(map[string]any))
			maps.DeleteFunc(got, func(key string, _ any) bool { return strings.HasPrefix(key, "pod-security.kubernetes.io/") })
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: %s (-want +got):\n%s", name, object, diff)
			}
		}
		daemonSet := all["DaemonSet/tailscale-nri"]
		if diff := cmp.Diff(want, at(t, daemonSet, "spec", "template", "metadata", "labels")); diff != "" {
			t.Errorf("%s: pods (-want +got):\n%s", name, diff)
		}
		for key, value := range at(t, daemonSet, "spec", "selector", "matchLabels").(map[string]any) {
			if want[key] != value {
				t.Errorf("%s: the selector wants %s: %v of a pod, which has %v", name, key, value, want[key])
			}
		}
	}
}

// madeImage is what "make image" calls the image, unless told otherwise.
var madeImage = regexp.MustCompile(`(?m)^IMAGE\s+\?=\s+(\S+)$`)

// TestReferences: what one object calls another by is that one's name.
func TestReferences(t *testing.T) {
	for name, all := range renderings(t) {
		spec := all.podSpec(t)
		if got := at(t, spec, "serviceAccountName"); all["ServiceAccount/"+got.(string)] == nil {
			t.Errorf("%s: there is no ServiceAccount %v", name, got)
		}
		config := at(t, named(t, spec, "volumes", "config"), "projected", "sources")
		if got := at(t, config, 0, "configMap", "name"); all["ConfigMap/"+got.(string)] == nil {
			t.Errorf("%s: there is no ConfigMap %v", name, got)
		}
		for _, path := range []string{"base/secret.example.yaml", "overlays/headscale/secret.example.yaml"} {
			secret := example(t, path)
			if got, want := at(t, config, 1, "secret", "name"), at(t, secret, "metadata", "name"); got != want {
				t.Errorf("%s mounts the Secret %v, %s makes %v", name, got, path, want)
			}
			if got := at(t, secret, "metadata", "namespace"); all["Namespace/"+got.(string)] == nil {
				t.Errorf("%s: %s is for namespace %v", name, path, got)
			}
		}
		for _, m := range at(t, all.container(t), "volumeMounts").([]any) {
			named(t, spec, "volumes", at(t, m, "name").(string))
		}
		made := madeImage.FindStringSubmatch(read(t, "image.mk"))
		if got := at(t, all.container(t), "image"); made == nil || got != made[1] {
			t.Errorf("%s: image %v, make image makes %q", name, got, made)
		}
	}
}

// TestPrivateCA: the program reads the key of the ConfigMap that the user makes
// as the component says, and nobody starts without it.
func TestPrivateCA(t *testing.T) {
	all := renderings(t)["private-ca"]
	const making = "create configmap tailscale-nri-ca --from-file=ca.crt="
	if !strings.Contains(read(t, "components/private-ca/kustomization.yaml"), making) {
		t.Errorf("the component does not say %q", making)
	}
	want := map[string]any{
		"name":  "tailscale-nri-ca",
		"items": []any{map[string]any{"key": "ca.crt", "path": "ca.crt"}},
	}
	if diff := cmp.Diff(want, at(t, named(t, all.podSpec(t), "volumes", "ca"), "configMap")); diff != "" {
		t.Errorf("the volume (-want +got):\n%s", diff)
	}
	mount := named(t, all.container(t), "volumeMounts", "ca")
	file := at(t, named(t, all.container(t), "env", "SSL_CERT_FILE"), "value")
	if at(t, mount, "mountPath").(string)+"/ca.crt" != file || at(t, mount, "readOnly") != true {
		t.Errorf("SSL_CERT_FILE is %v, the mount %v", file, mount)
	}
}

// TestNodeName: hosts that keep devices, or make Events, go by their nodes' names.
func TestNodeName(t *testing.T) {
	for _, name := range []string{"workload-state", "kubernetes-status"} {
		env := named(t, renderings(t)[name].container(t), "env", "NODE_NAME")
		if got := at(t, env, "valueFrom", "fieldRef", "fieldPath"); got != "spec.nodeName" {
			t.Errorf("%s: NODE_NAME is %v", name, got)
		}
	}
}

// TestTwoComponents: both that mount the token may be on at once, and mount one.
func TestTwoComponents(t *testing.T) {
	both := chart(t, "--set", "workloadState=true,kubernetesStatus=true")
	count := func(list []any, name string) (n int) {
		for _, e := range list {
			if at(t, e, "name") == name {
				n++
			}
		}
		return n
	}
	for list, name := range map[string]string{"env": "NODE_NAME", "volumeMounts": "api-token"} {
		if n := count(at(t, both.container(t), list).([]any), name); n != 1 {
			t.Errorf("%s has %s %d times", list, name, n)
		}
	}
	if n := count(at(t, both.podSpec(t), "volumes").([]any), "api-token"); n != 1 {
		t.Errorf("volumes has api-token %d times", n)
	}
}

// TestStatusRights holds what the ServiceAccount may do in all namespaces against what is
// promised, word by word.
func TestStatusRights(t *testing.T) {
	rules := at(t, renderings(t)["kubernetes-status"]["ClusterRole/tailscale-nri-kubernetes-status"], "rules")
	want := []any{
		map[string]any{"apiGroups": []any{""}, "resources": []any{"events"}, "verbs": []any{"create", "patch"}},
		map[string]any{"apiGroups": []any{""}, "resources": []any{"pods/status"}, "verbs": []any{"patch"}},
	}
	if diff := cmp.Diff(want, rules); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
}

// named is the entry of a list that has the name.
func named(t *testing.T, v any, list, name string) any {
	t.Helper()
	for _, e := range at(t, v, list).([]any) {
		if at(t, e, "name") == name {
			return e
		}
	}
	t.Fatalf("no entry of %s is named %s", list, name)
	return nil
}

// example reads a file that is not part of a kustomization.
func example(t *testing.T, path string) map[string]any {
	t.Helper()
	var o map[string]any
	if err := yaml.UnmarshalStrict([]byte(read(t, path)), &o); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return o
}

// TestComponents: one that no overlay uses is one that nothing tests. FEATURES.md has
// an overlay too: see TestPolicyComponent.
func TestComponents(t *testing.T) {
	var text strings.Builder
	text.WriteString(read(t, "FEATURES.md"))
	for _, name := range dirs(t, "overlays") {
		text.WriteString(read(t, filepath.Join("overlays", name, "kustomization.yaml")))
	}
	for _, name := range dirs(t, "components") {
		if !strings.Contains(text.String(), "- ../../components/"+name+"\n") {
			t.Errorf("components/%s is in no overlay", name)
		}
	}
}

// mentioned is a path of this project in a text.
var mentioned = regexp.MustCompile(`\b(?:deploy|k3d|nri-plugin|engine)/[a-z0-9][A-Za-z0-9_./-]*[A-Za-z0-9]`)

// TestMentionedFiles: a file that the documentation or a comment of this
// directory sends its reader to is there.
func TestMentionedFiles(t *testing.T) {
	found := 0
	check := func(path string) {
		for _, name := range mentioned.FindAllString(read(t, path), -1) {
			found++
			if _, err := os.Stat(filepath.Join("..", name)); err != nil {
				t.Errorf("%s mentions %s: %v", path, name, err)
			}
		}
	}
	for _, page := range pages(t) {
		check(page)
	}
	err := fs.WalkDir(os.DirFS("."), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && slices.Contains([]string{".yaml", ".tpl", ".txt"}, filepath.Ext(path)) {
			check(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if found == 0 {
		t.Error("no path was found in any text")
	}
}
