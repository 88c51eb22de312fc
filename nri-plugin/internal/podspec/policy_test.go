// SPDX-License-Identifier: BSD-3-Clause

package podspec

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
)

const testPolicyFile = "/etc/tailscale-nri/policy.yaml"

func mustPolicy(t testing.TB, text string) *Policy {
	t.Helper()
	p, err := ParsePolicy(testPolicyFile, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// strict are defaults as a cluster has them that says nothing.
func strict() Defaults {
	return Defaults{
		Cluster: "k8s", Tags: []string{"tag:k8s-pod", "tag:extra"},
		Profiles: map[string]Defaults{"prod": {Tags: []string{"tag:prod"}}, "lab": {Static: true}},
	}
}

// restricted has the features of which this program may know none yet.
func restricted() []string {
	return append(slices.Clone(notByDefault), "profile")
}

// TestDefaultPolicy: without a file, and for pods that no rule matches, a pod may
// ask for any subset of the default tags and for what concerns itself alone.
func TestDefaultPolicy(t *testing.T) {
	unmatched := mustPolicy(t, "rules: [{name: other, namespaces: [other], optIn: true, allow: {tags: ['tag:*'], features: ['*'], profiles: ['*']}}]")
	for _, p := range []*Policy{nil, mustPolicy(t, ""), unmatched} {
		d := strict()
		d.Policy = p
		for _, tt := range []struct {
			notes []string
			want  string // in the error, "" is none
		}{
			{nil, ""},
			{[]string{AnnotationTags, "tag:extra"}, ""},
			{[]string{AnnotationTags, "tag:extra,tag:k8s-pod"}, ""},
			{[]string{AnnotationHostname, "anything"}, ""},
			{[]string{annotationShieldsUp, "true", AnnotationEphemeral, "true"}, ""},
			{[]string{AnnotationTags, "tag:extra,tag:db"}, `tailscale.com/tags is "tag:extra,tag:db": the default policy|does not allow tag:db, only tag:k8s-pod, tag:extra|allow.tags|` + settings.PolicyFile},
			{[]string{AnnotationProfile, "prod"}, `tailscale.com/profile is "prod": the default policy|allow.profiles|` + settings.PolicyFile},
			{[]string{AnnotationProfile, "none"}, `tailscale.com/profile is "none": the default policy`},
			{[]string{AnnotationProfile, "No Label"}, `tailscale.com/profile is "No Label"|DNS label`},
		} {
			sb := plugintest.SandboxIn("default", nil, append(tt.notes, AnnotationEnabled, "true")...)
			_, got, err := From(sb, d)
			plugintest.ExpectError(t, fmt.Sprint(p != nil, tt.notes), err, tt.want)
			if got != (tt.want == "") {
				t.Errorf("%q: opted in %v", tt.notes, got)
			}
		}
		if _, got, err := From(plugintest.SandboxIn("default", nil), d); got || err != nil {
			t.Errorf("a pod that asks for nothing: %v, %v", got, err)
		}
		g := p.grantOf("default", nil)
		for _, name := range restricted() {
			check := g.checkFeature(AnnotationPrefix+name, "true")
			if name == "profile" {
				check = g.checkProfile("x")
			}
			plugintest.ExpectError(t, name, check, AnnotationPrefix+name+"|the default policy|"+settings.PolicyFile)
		}
	}
}

// TestFeaturesAreClassified: the author of a feature decides whether the default
// policy has it.
func TestFeaturesAreClassified(t *testing.T) {
	allowed := []string{"dns", "accept-routes", "exit-node", "socket", "wait", "wait-policy", "ephemeral", "shields-up"}
	for _, name := range featureNames() {
		if slices.Contains(allowed, name) == slices.Contains(notByDefault, name) {
			t.Errorf("%s: say here, or in notByDefault, whether a pod may ask for it where there is no policy", name)
		}
	}
}

// TestKeyWithoutTags: where an auth key brings the tags, a pod chooses none.
func TestKeyWithoutTags(t *testing.T) {
	d := Defaults{Cluster: "k8s", Static: true}
	_, _, err := From(plugintest.Sandbox("web", AnnotationEnabled, "true", AnnotationTags, "tag:a"), d)
	plugintest.ExpectError(t, "tags", err, `tailscale.com/tags is "tag:a"|does not allow tag:a, and no other tag either`)
	_, _, err = From(plugintest.Sandbox("web", AnnotationEnabled, "true", AnnotationEphemeral, "true"), d)
	plugintest.ExpectError(t, "ephemeral", err, "tailscale.com/ephemeral|"+settings.AuthKey)
	d.Policy = mustPolicy(t, "rules: [{allow: {tags: ['tag:a']}}]")
	if pod, _, err := From(plugintest.Sandbox("web", AnnotationEnabled, "true", AnnotationTags, "tag:a"), d); err != nil || !slices.Equal(pod.Tags, []string{"tag:a"}) {
		t.Errorf("allowed by a rule: %v, %v", pod.Tags, err)
	}
}

const shopPolicy = `
hostname: "{namespace}-{pod}"
defaults:
  features: {shields-up: true}
rules:
- name: shop
  namespaces: [shop, "shop-*"]
  labels: {app: web, team: "*"}
  optIn: true
  defaults:
    tags: [tag:shop]
    features: {ephemeral: true}
  allow:
    tags: ["tag:shop-*"]
    hostnames: ["shop-*"]
    profiles: [prod, "eu-*"]
    features: [ephemeral]
- namespaces: [shop]
  optIn: true
  defaults: {profile: prod}
- name: closed
  namespaces: [closed]
  allow: {tags: [], hostnames: [], features: [], profiles: []}
`

func TestRules(t *testing.T) {
	d := strict()
	d.Policy = mustPolicy(t, shopPolicy)
	web := map[string]string{"app": "web", "team": "a", "other": "x"}
	for _, tt := range []struct {
		name string
		sb   *api.PodSandbox
		want string // hostname, tags, features; "" stays out
		err  string
	}{
		{"opted in by the first rule", plugintest.SandboxIn("shop", web), "shop-web [tag:shop] ephemeral shields", ""},
		{"glob", plugintest.SandboxIn("shop-eu", web), "shop-eu-web-#hash [tag:shop] ephemeral shields", ""},
		{"stays out", plugintest.SandboxIn("shop", web, AnnotationEnabled, "false"), "", ""},
		{"in the host's network", plugintest.HostNetwork(plugintest.SandboxIn("shop", web)), "", ""},
		{"asks, in the host's network", plugintest.HostNetwork(plugintest.SandboxIn("shop", web, AnnotationEnabled, "true")), "", "hostNetwork"},
		{"label that is missing", plugintest.SandboxIn("shop-eu", map[string]string{"app": "web"}), "", ""},
		{"label with another value", plugintest.SandboxIn("shop-eu", map[string]string{"app": "db", "team": "a"}), "", ""},
		{"the second rule", plugintest.SandboxIn("shop", nil), "shop-web [tag:prod] shields profile=prod", ""},
		{"no rule", plugintest.SandboxIn("other", web), "", ""},
		{"no rule, asks", plugintest.SandboxIn("other", web, AnnotationEnabled, "true"), "other-web [tag:k8s-pod tag:extra] shields", ""},
		{"turns a default off that is allowed", plugintest.SandboxIn("shop", web, AnnotationEphemeral, "false"), "shop-web [tag:shop] shields", ""},
		{"turns a default off that is not", plugintest.SandboxIn("shop", web, annotationShieldsUp, "false"), "", `tailscale.com/shields-up is "false": rule 1 (shop)|allow.features`},
		{"turns a default off where nothing is allowed", plugintest.SandboxIn("closed", nil, AnnotationEnabled, "true", annotationShieldsUp, "false"), "", "rule 3 (closed)|shields-up"},
		{"turns a default off by the default policy", plugintest.SandboxIn("other", web, AnnotationEnabled, "true", annotationShieldsUp, "false"), "other-web [tag:k8s-pod tag:extra]", ""},
		{"leaves off what it has not", plugintest.SandboxIn("closed", nil, AnnotationEnabled, "true", AnnotationEphemeral, "false"), "closed-web [tag:k8s-pod tag:extra] shields", ""},
		{"asks for what it has", plugintest.SandboxIn("shop", web, annotationShieldsUp, "true"), "shop-web [tag:shop] ephemeral shields", ""},
		{"tag", plugintest.SandboxIn("shop", web, AnnotationTags, "tag:shop-db,tag:shop"), "shop-web [tag:shop-db tag:shop] ephemeral shields", ""},
		{"hostname", plugintest.SandboxIn("shop", web, AnnotationHostname, "Shop-front"), "shop-front [tag:shop] ephemeral shields chosen", ""},
		{"profile", plugintest.SandboxIn("shop", web, AnnotationProfile, "prod"), "shop-web [tag:prod] ephemeral shields profile=prod", ""},
		{"profile that is the default", plugintest.SandboxIn("shop", nil, AnnotationProfile, "prod"), "shop-web [tag:prod] shields profile=prod", ""},

		{"tag of the default policy", plugintest.SandboxIn("shop", web, AnnotationTags, "tag:k8s-pod"), "", `tailscale.com/tags is "tag:k8s-pod": rule 1 (shop) of ` + testPolicyFile + ` does not allow tag:k8s-pod, only tag:shop, tag:shop-*|add it to allow.tags of that rule`},
		{"hostname that is not allowed", plugintest.SandboxIn("shop", web, AnnotationHostname, "bank"), "", `tailscale.com/hostname is "bank": rule 1 (shop)|only shop-*|allow.hostnames`},
		{"profile that is not allowed", plugintest.SandboxIn("shop", web, AnnotationProfile, "us-1"), "", `tailscale.com/profile is "us-1": rule 1 (shop)|allow.profiles`},
		{"profile that is not there", plugintest.SandboxIn("shop", web, AnnotationProfile, "eu-1"), "", `tailscale.com/profile is "eu-1": there is lab, prod|eu-1.TS_OAUTH_CLIENT_ID`},
		{"rule without a name", plugintest.SandboxIn("shop", nil, AnnotationTags, "tag:x"), "", `rule 2 of ` + testPolicyFile + ` does not allow tag:x, only tag:prod`},
		{"nothing is allowed", plugintest.SandboxIn("closed", nil, AnnotationEnabled, "true", AnnotationHostname, "a"), "", "rule 3 (closed)|and no other hostname either"},
		{"nothing is allowed but the defaults", plugintest.SandboxIn("closed", nil, AnnotationEnabled, "true"), "closed-web [tag:k8s-pod tag:extra] shields", ""},
		{"a feature of its own", plugintest.SandboxIn("closed", nil, AnnotationEnabled, "true", AnnotationEphemeral, "true"), "", "rule 3 (closed)|ephemeral"},
		{"a bad value in a pod that a rule opts in", plugintest.SandboxIn("shop", web, AnnotationHostname, "a_b"), "", AnnotationHostname},
		{"a misspelt key in a pod that a rule opts in", plugintest.SandboxIn("shop", web, AnnotationPrefix+"tag", "tag:x"), "", "write " + AnnotationTags},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pod, ok, err := From(tt.sb, d)
			plugintest.ExpectError(t, tt.name, err, tt.err)
			if got := summary(pod, ok && err == nil); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// summary is what a table says of a pod.
func summary(pod engine.Pod, in bool) string {
	if !in {
		return ""
	}
	name := pod.Hostname
	if i := strings.LastIndexByte(name, '-'); endsInHash(name) {
		name = name[:i] + "-#hash"
	}
	out := fmt.Sprint(name, " ", pod.Tags)
	for _, f := range []struct {
		on   bool
		text string
	}{
		{pod.Features.Ephemeral, "ephemeral"}, {pod.Features.ShieldsUp, "shields"},
		{pod.Features.Profile != "", "profile=" + pod.Features.Profile}, {pod.ChosenName, "chosen"},
	} {
		if f.on {
			out += " " + f.text
		}
	}
	return out
}

// TestKubeSystem: a rule for all namespaces is not meant for what the cluster itself
// runs, unless it says so.
func TestKubeSystem(t *testing.T) {
	d := strict()
	for text, want := range map[string]bool{
		"rules: [{optIn: true}]":                                      false,
		"rules: [{namespaces: ['*'], optIn: true}]":                   false,
		"rules: [{namespaces: ['kube-*'], optIn: true}]":              false,
		"rules: [{namespaces: ['a', 'kube-system'], optIn: true}]":    true,
		"rules: [{namespaces: ['kube-*', kube-system], optIn: true}]": true,
	} {
		d.Policy = mustPolicy(t, text)
		if _, got, err := From(plugintest.SandboxIn(kubeSystem, nil), d); got != want || err != nil {
			t.Errorf("%s: %v, %v", text, got, err)
		}
		if _, got, err := From(plugintest.SandboxIn(kubeSystem, nil, AnnotationEnabled, "true"), d); !got || err != nil {
			t.Errorf("%s, asks: %v, %v", text, got, err)
		}
	}
}

// TestServedPod: a pod that has its node keeps it, whatever the policy has become.
func TestServedPod(t *testing.T) {
	d := strict()
	d.Policy, d.Served = mustPolicy(t, "rules: [{allow: {tags: [], hostnames: [], features: [], profiles: []}}]"), true
	sb := plugintest.SandboxIn("shop", nil, AnnotationTags, "tag:x", AnnotationHostname, "x", AnnotationProfile, "gone", AnnotationEphemeral, "true")
	pod, ok, err := From(sb, d)
	if got := summary(pod, ok); err != nil || got != "x [tag:x] ephemeral profile=gone chosen" {
		t.Errorf("got %q, %v", got, err)
	}
	router := plugintest.SandboxIn("shop", nil, AnnotationEnabled, "true", annotationAdvertiseExitNode, "true")
	d.Policy = mustPolicy(t, "defaults: {features: {shields-up: true, exit-node: gate}}")
	if _, ok, err := From(router, d); !ok || err != nil {
		t.Errorf("a later default that excludes what it has: %v, %v", ok, err)
	}
	d.Served, d.Policy = false, mustPolicy(t, "{defaults: {features: {shields-up: true}}, rules: [{allow: {features: ['*']}}]}")
	_, _, err = From(router, d)
	plugintest.ExpectError(t, "router by a default with shields up", err, `tailscale.com/shields-up is "true"|write "false"`)
}

// TestExclusive: what a tailnet deletes by itself cannot outlive its pod.
func TestExclusive(t *testing.T) {
	if err := checkTogether(engine.Features{Ephemeral: true}); err != nil {
		t.Error(err)
	}
	plugintest.ExpectError(t, "profile", checkTogether(engine.Features{Profile: "prod", Workload: true}), `tailscale.com/profile is "prod"|identity`)
	plugintest.ExpectError(t, "both", checkTogether(engine.Features{Ephemeral: true, Workload: true}), AnnotationEphemeral+"|identity")
}

// TestTemplates: two pods never share a name, whatever the template.
func TestTemplates(t *testing.T) {
	for text, wants := range map[string][]string{
		standardName:                  {"k8s-a-b", "k8s-a-b-c-#hash", "k8s-a-b-c"},
		"{namespace}-{pod}":           {"a-b", "a-b-c-#hash", "a-b-c"},
		"{pod}-{namespace}":           {"b-a", "c-a-b-#hash", "b-c-a"},
		"{pod}.":                      nil,
		"{pod}":                       {"b-#hash", "c-#hash", "b-c-#hash"},
		"{namespace}{pod}":            {"ab-#hash", "a-bc-#hash", "ab-c-#hash"},
		"x{namespace}-in-k8s-{pod}-x": {"xa-in-k8s-b-x", "xa-b-in-k8s-c-x-#hash", "xa-in-k8s-b-c-x"},
		"{pod}-{pod}-{namespace}":     {"b-b-a-#hash", "c-c-a-b-#hash", "b-c-b-c-a-#hash"},
		"{cluster}-{namespace}":       nil,
		"{cluster}-{name}-{pod}":      nil,
		"Web-{pod}":                   nil,
		"{Pod}":                       nil,
	} {
		tmpl, err := parseTemplate(text)
		if (err != nil) != (wants == nil) {
			t.Errorf("%s: %v", text, err)
		}
		seen := map[string]bool{}
		for i, want := range wants {
			pod := [][2]string{{"a", "b"}, {"a-b", "c"}, {"a", "b-c"}}[i]
			name := tmpl.name("k8s", pod[0], pod[1])
			if got, _, _ := strings.Cut(summary(engine.Pod{Hostname: name}, true), " "); got != want {
				t.Errorf("%s of %v: %s, want %s", text, pod, got, want)
			}
			if seen[name] || CheckLabel(name) != nil {
				t.Errorf("%s: %s is no label, or another pod's", text, name)
			}
			seen[name] = true
		}
	}
}

// FuzzTemplate holds that two pods of one cluster have two names, which are labels.
func FuzzTemplate(f *testing.F) {
	f.Add("{namespace}-{pod}", "a", "b-c", "a-b", "c")
	f.Add("{pod}x-{namespace}", "a", "b", "ax", "b")
	f.Fuzz(func(t *testing.T, text, ns1, pod1, ns2, pod2 string) {
		tmpl, err := parseTemplate(text)
		for _, s := range []string{ns1, pod1, ns2, pod2} {
			err = errors.Join(err, CheckLabel(s)) // as Kubernetes has namespaces and, in short, pods
		}
		if err != nil || ns1 == ns2 && pod1 == pod2 {
			return
		}
		a, b := tmpl.name("k8s", ns1, pod1), tmpl.name("k8s", ns2, pod2)
		if a == b || CheckLabel(a) != nil || CheckLabel(b) != nil {
			t.Errorf("%s: %s/%s is %s, %s/%s is %s", text, ns1, pod1, a, ns2, pod2, b)
		}
	})
}
