// SPDX-License-Identifier: BSD-3-Clause

package deploy

import (
	"cmp"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

// TestChartIsBase: an installation by Helm is the same as one by kubectl apply -k.
// The Namespace is an option of the chart, since Helm wants one before it
// installs anything.
func TestChartIsBase(t *testing.T) {
	base := kustomize(t, "base")
	if diff := gocmp.Diff(base, chart(t, "--set", "namespace.create=true")); diff != "" {
		t.Errorf("the chart (+) is not the base (-):\n%s", diff)
	}
	delete(base, "Namespace/tailscale-nri")
	if diff := gocmp.Diff(base, chart(t)); diff != "" {
		t.Errorf("the chart with its defaults (+) is not the base (-):\n%s", diff)
	}
}

// overlay says how a user of the chart comes to what an overlay holds.
type overlay struct {
	dir    string   // where it differs from the name
	edits  []string // what the user has to write into the kustomization: placeholder, text, …
	values []string // the chart's
}

func overlays() map[string]overlay {
	login := []string{"TS_LOGIN_SERVER=REPLACE-ME", "TS_LOGIN_SERVER=https://headscale.example.com"}
	return map[string]overlay{
		"k3s": {values: []string{"config.CLUSTER_NAME=k3s"}},
		"k3d": {
			edits:  []string{"CLUSTER_NAME=REPLACE-ME", "CLUSTER_NAME=mine"},
			values: []string{"config.CLUSTER_NAME=mine", "procNetns=true"},
		},
		"headscale": {
			edits:  login,
			values: []string{"config.TS_LOGIN_SERVER=https://headscale.example.com"},
		},
		"private-ca": {
			dir: "headscale",
			edits: append(login, "# components:", "components:",
				"# - ../../components/private-ca", "- ../../components/private-ca"),
			values: []string{"config.TS_LOGIN_SERVER=https://headscale.example.com", "caConfigMap=tailscale-nri-ca"},
		},
		"workload-identity": {
			edits:  []string{"TS_OAUTH_CLIENT_ID=", "TS_OAUTH_CLIENT_ID=kfed3ra7ed1CNTRL"},
			values: []string{"workloadIdentity.clientID=kfed3ra7ed1CNTRL"},
		},
		"fail-closed":    {values: []string{"failClosed=true"}},
		"workload-state": {values: []string{"workloadState=true"}},

		"kubernetes-status": {values: []string{"kubernetesStatus=true"}},
	}
}

func TestChartIsOverlay(t *testing.T) {
	for name, o := range overlays() {
		t.Run(name, func(t *testing.T) {
			args := []string{"--set", "namespace.create=true", "--set", strings.Join(o.values, ",")}
			if diff := gocmp.Diff(kustomize(t, fill(t, name, o)), chart(t, args...)); diff != "" {
				t.Errorf("the chart (+) is not the overlay (-):\n%s", diff)
			}
		})
	}
	for _, name := range dirs(t, "overlays") {
		if _, ok := overlays()[name]; !ok {
			t.Errorf("overlays/%s is not compared with the chart", name)
		}
	}
}

// fill does in a copy what the head of an overlay tells the user to do, and
// returns where the overlay is then.
func fill(t *testing.T, name string, o overlay) string {
	t.Helper()
	if len(o.edits) == 0 {
		return filepath.Join("overlays", name)
	}
	root := t.TempDir()
	for _, dir := range []string{"base", "components", "overlays"} {
		if err := os.CopyFS(filepath.Join(root, dir), os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(root, "overlays", cmp.Or(o.dir, name))
	path := filepath.Join(dir, "kustomization.yaml")
	text := read(t, path)
	for edit := range slices.Chunk(o.edits, 2) {
		if n := strings.Count(text, edit[0]+"\n"); n != 1 {
			t.Fatalf("%s has %q %d times, it has to be written in one place", path, edit[0], n)
		}
		text = strings.Replace(text, edit[0], edit[1], 1)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestChartOptions: each of the other values has its effect.
func TestChartOptions(t *testing.T) {
	const digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	pod := []any{"DaemonSet/tailscale-nri", "spec", "template"}
	strategy := []any{"DaemonSet/tailscale-nri", "spec", "updateStrategy"}
	for _, tt := range []struct {
		set  string
		path []any
		want any
	}{
		{"image.repository=ghcr.io/x/tailscale-nri,image.tag=v1", append(pod, "spec", "containers", 0, "image"), "ghcr.io/x/tailscale-nri:v1"},
		{"image.digest=" + digest, append(pod, "spec", "containers", 0, "image"), "tailscale-nri:dev@" + digest},
		{"image.pullPolicy=Never", append(pod, "spec", "containers", 0, "imagePullPolicy"), "Never"},
		{"imagePullSecrets[0].name=mine", append(pod, "spec", "imagePullSecrets", 0, "name"), "mine"},
		{"resources.limits.memory=1Gi", append(pod, "spec", "containers", 0, "resources", "limits", "memory"), "1Gi"},
		{"priorityClassName=mine", append(pod, "spec", "priorityClassName"), "mine"},
		{"priorityClassName=mine", []any{"ResourceQuota/tailscale-nri", "spec", "scopeSelector", "matchExpressions", 0, "values", 0}, "mine"},
		{"nodeSelector.pool=a", append(pod, "spec", "nodeSelector", "pool"), "a"},
		{"tolerations[0].key=a", append(pod, "spec", "tolerations", 0, "key"), "a"},
		{"affinity.nodeAffinity.x=y", append(pod, "spec", "affinity", "nodeAffinity", "x"), "y"},
		{"podLabels.a=b", append(pod, "metadata", "labels", "a"), "b"},
		{"podAnnotations.a=b", append(pod, "metadata", "annotations", "a"), "b"},
		{"labels.a=b", []any{"ServiceAccount/tailscale-nri", "metadata", "labels", "a"}, "b"},
		{"updateStrategy.rollingUpdate.maxSurge=1", append(strategy, "rollingUpdate", "maxSurge"), 1.0},
		{"config.TS_METRICS_ADDR=:9464", []any{"ConfigMap/tailscale-nri", "data", "TS_METRICS_ADDR"}, ":9464"},
		{"config.HTTPS_PROXY=http://proxy.example.com:3128", []any{"ConfigMap/tailscale-nri", "data", "HTTPS_PROXY"}, "http://proxy.example.com:3128"},
		{`config.NO_PROXY=localhost\,10.0.0.0/8\,.svc`, []any{"ConfigMap/tailscale-nri", "data", "NO_PROXY"}, "localhost,10.0.0.0/8,.svc"},
		{
			"extraEnv[0].name=GODEBUG,extraEnv[0].value=x=1", append(pod, "spec", "containers", 0, "env", 0),
			map[string]any{"name": "GODEBUG", "value": "x=1"},
		},
		{"updateStrategy.type=OnDelete", strategy, map[string]any{"type": "OnDelete"}},
		{"updateStrategy.rollingUpdate=null", strategy, map[string]any{"type": "RollingUpdate"}},
		{
			"updateStrategy.rollingUpdate.maxSurge=0,updateStrategy.rollingUpdate.maxUnavailable=20%", append(strategy, "rollingUpdate"),
			map[string]any{"maxSurge": 0.0, "maxUnavailable": "20%"},
		},
		{"workloadIdentity.clientID=x,workloadIdentity.audience=mine", append(pod, "spec", "volumes", 1, "projected", "sources", 0, "serviceAccountToken", "audience"), "mine"},
		{"credentials.profilesSecretName=mine", append(pod, "spec", "volumes", 0, "projected", "sources", 2, "secret", "name"), "mine"},
		{"profiles.prod.TS_TAGS=tag:prod", []any{"ConfigMap/tailscale-nri", "data", "prod.TS_TAGS"}, "tag:prod"},
		{"policy.rules[0].optIn=true", []any{"ConfigMap/tailscale-nri", "data", "policy.yaml"}, "rules:\n- optIn: true"},
		{"caConfigMap=mine", append(pod, "spec", "volumes", 0, "configMap", "name"), "mine"},
		{"credentials.secretName=mine", append(pod, "spec", "volumes", 0, "projected", "sources", 1, "secret", "name"), "mine"},
		{"credentials.create=true,credentials.authKey=k", []any{"Secret/tailscale-nri-credentials", "stringData"}, map[string]any{"TS_AUTHKEY": "k"}},
		{
			"credentials.create=true,credentials.oauthClientID=i,credentials.oauthClientSecret=s",
			[]any{"Secret/tailscale-nri-credentials", "stringData"},
			map[string]any{"TS_OAUTH_CLIENT_ID": "i", "TS_OAUTH_CLIENT_SECRET": "s"},
		},
	} {
		t.Run(tt.set, func(t *testing.T) {
			all := map[string]any{}
			for name, o := range chart(t, "--set", tt.set) {
				all[name] = o
			}
			if diff := gocmp.Diff(tt.want, at(t, all, tt.path...)); diff != "" {
				t.Errorf("%v (-want +got):\n%s", tt.path, diff)
			}
		})
	}
}

// TestChartNamespace: nothing of the chart is bound to the name of the
// namespace, which Helm's user chooses.
func TestChartNamespace(t *testing.T) {
	for name, o := range chart(t, "--namespace", "elsewhere") {
		if got := at(t, o, "metadata", "namespace"); got != "elsewhere" {
			t.Errorf("%s is in %v", name, got)
		}
	}
	// Secrets of a namespace that others share are theirs too.
	for _, shared := range []string{"kube-system", "default"} {
		if _, err := template(t, "--namespace", shared, "--set", "workloadState=true"); err == nil || !strings.Contains(err.Error(), "namespace of its own") {
			t.Errorf("workloadState in %s: %v", shared, err)
		}
	}
}

// TestChartRefuses: a bad value fails the rendering, and the text names it and a
// good one.
func TestChartRefuses(t *testing.T) {
	for _, tt := range []struct {
		set  string
		want []string
	}{
		{"config.TS_TAG=tag:x", []string{"/config", "TS_TAG", "not allowed"}},
		{"config.TS_STATE_DIR=/x", []string{"/config", "TS_STATE_DIR", "not allowed"}},
		{"config.CLUSTER_NAME=Bad_Name", []string{"/config/CLUSTER_NAME", "Bad_Name", "a-z0-9"}},
		{"config.CLUSTER_NAME=" + strings.Repeat("a", 33), []string{"/config/CLUSTER_NAME", "32"}},
		{"config.TS_TAGS=k8s-pod", []string{"/config/TS_TAGS", "k8s-pod", "tag:"}},
		{"config.TS_LOGIN_SERVER=REPLACE-ME", []string{"/config/TS_LOGIN_SERVER", "https?://"}},
		{"config.TS_API_URL=https://u:p@api.example.com", []string{"/config/TS_API_URL", "https?://"}},
		{"config.AUTH_KEY_TTL=5", []string{"/config/AUTH_KEY_TTL", "number", "string"}},
		{"config.TS_SWEEP_AFTER=7d", []string{"/config/TS_SWEEP_AFTER", "7d", "(s|m|h)"}},
		{"config.HTTPS_PROXY=http://u:p@proxy.example.com", []string{"/config/HTTPS_PROXY", "https?://"}},
		{"config.HTTP_PROXY=proxy:3128", []string{"/config/HTTP_PROXY", "https?://"}},
		{"config.TS_RUNTIME_HANDLERS=runc Kata", []string{"/config/TS_RUNTIME_HANDLERS", "a-z0-9"}},
		{"config.TS_POLICY_FILE=policy.yaml", []string{"/config/TS_POLICY_FILE", "policy.yaml"}},
		{"config.TS_POLICY_FILE=/x,policy.rules[0].optIn=true", []string{"policy and config.TS_POLICY_FILE", "keep one"}},
		{"policy.rule[0].optIn=true", []string{"/policy", "rule", "not allowed"}},
		{"policy.rules[0].optIn=sure", []string{"/policy/rules/0/optIn", "boolean"}},
		{"policy.rules[0].allow.tags[0]=web", []string{"/policy/rules/0/allow/tags/0", "tag:"}},
		{"policy.hostname=web", []string{"/policy/hostname", "pod"}},
		{"profiles.prod.TS_AUTHKEY=k", []string{"/profiles/prod", "TS_AUTHKEY", "not allowed"}},
		{"profiles.Prod.TS_TAGS=tag:x", []string{"propertyName", "Prod"}},
		{"extraEnv[0].name=TS_AUTHKEY", []string{"extraEnv has TS_AUTHKEY", "credentials.secretName"}},
		{"extraEnv[0].name=POD_UID", []string{"extraEnv has POD_UID", "the chart sets it"}},
		{"extraEnv[0].name=NODE_NAME", []string{"extraEnv has NODE_NAME", "workloadState"}},
		{"extraEnv[0].name=TS_KUBERNETES_STATUS", []string{"extraEnv has TS_KUBERNETES_STATUS", "kubernetesStatus"}},
		{"kubernetesStatus=auto", []string{"/kubernetesStatus", "boolean"}},
		{"extraEnv[0].name=HTTPS_PROXY", []string{"set config.HTTPS_PROXY", "Secret"}},
		{"extraEnv[0].value=x", []string{"/extraEnv/0", "name"}},
		{"config.TS_METRICS_ADDR=localhost:9464", []string{"/config/TS_METRICS_ADDR", "localhost", "0-9"}},
		{"config.LOG_LEVEL=loud", []string{"/config/LOG_LEVEL", "debug", "warn"}},
		{"config.LOG_FORMAT=xml", []string{"/config/LOG_FORMAT", "json"}},
		{"image.pullPolicy=Sometimes", []string{"/image/pullPolicy", "IfNotPresent"}},
		{"image.digest=sha256:0", []string{"/image/digest", "sha256:"}},
		{"credentials.secretName=Mine", []string{"/credentials/secretName", "Mine"}},
		{"credentials.authkey=k", []string{"/credentials", "authkey", "not allowed"}},
		{"workloadIdentity.expirationSeconds=60", []string{"/workloadIdentity/expirationSeconds", "600"}},
		{"privileged=true", []string{"privileged", "not allowed"}},
		{"caConfigMap=Mine", []string{"/caConfigMap", "Mine"}},
		{"procNetns=yes", []string{"/procNetns", "boolean"}},
		{`labels.app\.kubernetes\.io/name=x`, []string{"/labels/app.kubernetes.io", "tailscale-nri"}},
		{`podLabels.app\.kubernetes\.io/part-of=x`, []string{"/podLabels/app.kubernetes.io", "tailscale-nri"}},
		{`podAnnotations.tolerate-missing-nri-plugins\.noderesource\.dev=no`, []string{"/podAnnotations/tolerate-missing", "true"}},
		{"updateStrategy.type=Recreate", []string{"/updateStrategy/type", "RollingUpdate"}},
		{"updateStrategy.rollingUpdate.maxSurge=101%", []string{"/updateStrategy/rollingUpdate/maxSurge", "101%", "100)%"}},
		{"updateStrategy.rollingUpdate.maxSurge=0", []string{"maxSurge 0 and maxUnavailable 0", "one of them has to be 0"}},
		{"updateStrategy.rollingUpdate.maxSurge=0%", []string{"maxSurge 0% and maxUnavailable 0", "one of them has to be 0"}},
		{"updateStrategy.rollingUpdate.maxUnavailable=1", []string{"maxSurge 60% and maxUnavailable 1", "one of them has to be 0"}},
		{"updateStrategy.rollingUpdate.maxSurge=null", []string{"maxSurge 0 and maxUnavailable 0", "one of them has to be 0"}},
		{"updateStrategy.rollingUpdate.maxUnavailable=null", []string{"maxSurge 60% and maxUnavailable 1", "one of them has to be 0"}},
		{"credentials.authKey=k", []string{"credentials.create is false", "credentials.secretName"}},
		{"credentials.create=true", []string{"set oauthClientID and oauthClientSecret, or authKey"}},
		{"credentials.create=true,credentials.oauthClientID=i", []string{"set both"}},
		{"credentials.create=true,credentials.oauthClientID=i,credentials.oauthClientSecret=s,credentials.authKey=k", []string{"keep one"}},
		{"credentials.create=true,credentials.authKey=k,workloadIdentity.clientID=i", []string{"keep one"}},
	} {
		t.Run(tt.set, func(t *testing.T) {
			out, err := template(t, "--set", tt.set)
			if err == nil {
				t.Fatalf("it was taken:\n%s", out)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the text does not say %q: %v", want, err)
				}
			}
		})
	}
}

// TestChartValues: values.yaml has each value that the schema allows, with its
// default and a comment above it. What Kubernetes defines is left to it.
func TestChartValues(t *testing.T) {
	var schema map[string]any
	if err := json.Unmarshal([]byte(read(t, "chart/values.schema.json")), &schema); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(read(t, "chart/values.yaml"), "\n")
	for key, s := range at(t, schema, "properties").(map[string]any) {
		if key == "global" {
			continue // Helm's, for any chart
		}
		i := documented(t, lines, 0, key)
		children, ok := s.(map[string]any)["properties"].(map[string]any)
		if !ok || slices.Contains([]string{"policy", "resources", "affinity", "updateStrategy"}, key) {
			continue
		}
		for child := range children {
			documented(t, lines[i:], i, "  "+child)
		}
	}
}

// documented finds the line of a key, indented as in the file, and wants a
// comment above it, or a heading that is followed by one.
func documented(t *testing.T, lines []string, offset int, key string) int {
	t.Helper()
	i := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, key+":") })
	if i < 1 {
		t.Fatalf("values.yaml has no %s, which the schema allows", strings.TrimSpace(key))
	}
	near := lines[i-1]
	if lines[i] == key+":" && i+1 < len(lines) {
		near += lines[i+1]
	}
	if !strings.Contains(near, "# ") {
		t.Errorf("values.yaml, line %d: no comment for %s", offset+i+1, strings.TrimSpace(key))
	}
	return i
}

// dirs lists the directories in one.
func dirs(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
