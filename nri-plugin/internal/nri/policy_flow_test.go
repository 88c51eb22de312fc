// SPDX-License-Identifier: BSD-3-Clause

package nri

import (
	"testing"

	"github.com/containerd/nri/pkg/api"

	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/podspec"
)

// policyOf is the policy of a file named policy.yaml.
func policyOf(t *testing.T, text string) *podspec.Policy {
	t.Helper()
	p, err := podspec.ParsePolicy("policy.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// openDefaults let a pod ask for anything.
var openDefaults = podspec.Defaults{Cluster: "k8s", Tags: []string{"tag:k8s-pod"}, Policy: openPolicy()}

func openPolicy() *podspec.Policy {
	p, err := podspec.ParsePolicy("policy.yaml", []byte(`rules: [{allow: {tags: ["tag:*"], profiles: ["*"], features: ["*"]}}]`))
	if err != nil {
		panic(err)
	}
	return p
}

// TestPolicyOverNRI: a policy decides over a real connection, a changed one at once,
// and what has its node is not asked again.
func TestPolicyOverNRI(t *testing.T) {
	dir, pods, held := t.TempDir(), plugintest.NewFakePods(), &podspec.Policies{}
	held.Set(policyOf(t, `
rules:
- name: shop
  namespaces: ["shop-*"]
  labels: {app: web}
  optIn: true
  allow: {tags: ["tag:shop-*"], features: [ephemeral]}
`))
	labelled := func(name string, notes ...string) *api.PodSandbox {
		sb := plugintest.SandboxIn("shop-eu", map[string]string{"app": "web"}, notes...)
		sb.Name, sb.Id, sb.Uid = name, "id-"+name, "uid-"+name
		return sb
	}
	// One that was attached under another policy, before the plugin was started.
	was := labelled("was", podspec.AnnotationEnabled, "true", podspec.AnnotationTags, "tag:forbidden")
	pods.Known.Store("uid-was id-was", true)
	left := labelled("left") // opted in by a rule that is gone
	left.Namespace = "gone"
	pods.Known.Store("uid-left id-left", true)
	other := labelled("other", podspec.AnnotationEnabled, "true", podspec.AnnotationEphemeral, "as another version took it")
	pods.Known.Store("uid-other id-other", true)
	r := plugintest.StartRuntime(t, dir, was, left, other, labelled("missed"), labelled("refused", podspec.AnnotationEnabled, "true", podspec.AnnotationTags, "tag:x"),
		plugintest.HostNetwork(labelled("host")), plugintest.Sandbox("plain"))
	book := startPlugin(t, dir, pods, func(r *Registration) {
		r.Plugin.Policies, r.Plugin.OwnUID, r.Plugin.Handlers = held, "", []string{"runc"}
	})
	r.WaitSynced(t)
	live := plugintest.Receive(t, pods.Synced, "Sync")
	if len(live) != 4 || live[0].Name != "was" || live[0].Tags[0] != "tag:forbidden" || live[1].Name != "left" || live[2].Name != "other" || live[3].Name != "missed" {
		t.Errorf("live is %+v", live)
	}
	if book.Count("pod=shop-eu/refused") != 1 || book.Count("rule 1 (shop)") != 1 || book.Count("shop-eu/host") != 0 || book.Count("shop-eu/other") != 0 {
		t.Errorf("the log says\n%s", book.String())
	}

	if err := r.RunPod(labelled("a", podspec.AnnotationTags, "tag:shop-a")); err != nil {
		t.Error(err)
	}
	if pod := plugintest.Receive(t, pods.Attached, "Attach"); pod.Name != "a" || pod.Tags[0] != "tag:shop-a" {
		t.Errorf("attached %+v", pod)
	}
	kata := labelled("kata")
	kata.RuntimeHandler = "kata"
	for _, sb := range []*api.PodSandbox{labelled("out", podspec.AnnotationEnabled, "false"), plugintest.HostNetwork(labelled("host")), kata, plugintest.Sandbox("plain")} {
		if err := r.RunPod(sb); err != nil {
			t.Errorf("%s is refused: %v", sb.Name, err)
		}
		if err := r.Create(sb, "main"); err != nil {
			t.Errorf("a container of %s is refused: %v", sb.Name, err)
		}
	}
	kata.Annotations[podspec.AnnotationEnabled] = "true"
	plugintest.ExpectError(t, "one that asks", r.RunPod(kata), `runtime handler "kata"`)
	bad := labelled("bad", podspec.AnnotationTags, "tag:db")
	for what, err := range map[string]error{"RunPodSandbox": r.RunPod(bad), "CreateContainer": r.Create(bad, "main")} {
		plugintest.ExpectError(t, what, err, `tailscale-nri: pod shop-eu/bad: annotation tailscale.com/tags is "tag:db": rule 1 (shop) of policy.yaml|allow.tags`)
	}
	if n := len(pods.Attached); n != 0 {
		t.Errorf("%d pods were attached that are not to be", n)
	}

	// Narrower: what has its node goes on, what comes is refused or left out.
	held.Set(policyOf(t, ""))
	for _, sb := range []*api.PodSandbox{was, other} {
		if err := r.Create(sb, "main"); err != nil {
			t.Errorf("a container of %s, which has its node: %v", sb.Name, err)
		}
		plugintest.Receive(t, pods.Attached, "Attach")
	}
	if err := r.Create(labelled("a", podspec.AnnotationTags, "tag:shop-a"), "sidecar"); err != nil {
		t.Errorf("a container of a pod that is served: %v", err)
	}
	plugintest.ExpectError(t, "the same annotation now", r.RunPod(labelled("b", podspec.AnnotationEnabled, "true", podspec.AnnotationTags, "tag:shop-a")), "the default policy")
	if err := r.RunPod(labelled("c")); err != nil || len(pods.Attached) != 0 {
		t.Errorf("a pod of no rule: %v, %d attached", err, len(pods.Attached))
	}
}

// TestOwnPod: no rule gives this very pod a node.
func TestOwnPod(t *testing.T) {
	held := &podspec.Policies{}
	held.Set(policyOf(t, "rules: [{optIn: true}]"))
	p := &Plugin{Pods: plugintest.NewFakePods(), Defaults: openDefaults, Policies: held, OwnUID: "uid-own", Handlers: []string{"runc"}}
	if _, got, err := p.podOf(plugintest.Sandbox("own")); got || err != nil {
		t.Errorf("its own pod: %v, %v", got, err)
	}
	if _, got, err := p.podOf(plugintest.Sandbox("other")); !got || err != nil {
		t.Errorf("another pod: %v, %v", got, err)
	}
}
