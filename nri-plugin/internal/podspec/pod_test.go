// SPDX-License-Identifier: BSD-3-Clause

package podspec

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"tailscale.com/tailcfg"
	"tailscale.com/util/dnsname"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/plugintest"
)

// testDefaults let a pod ask for anything.
var testDefaults = Defaults{Cluster: "k8s", Tags: []string{"tag:k8s-pod"}, Policy: &Policy{rules: []policyRule{
	{allow: allowance{tags: []string{"tag:*"}, profiles: []string{"*"}, features: []string{"*"}}},
}}}

func TestPodFrom(t *testing.T) {
	want := engine.Pod{
		SandboxID: "id-web", UID: "uid-web", Namespace: "default", Name: "web",
		NetNS: "/var/run/netns/cni-web", PID: 4711,
		Hostname: "k8s-default-web", Tags: []string{"tag:k8s-pod"},
	}
	with := func(change func(*engine.Pod)) engine.Pod {
		p := want
		change(&p)
		return p
	}
	for _, tt := range []struct {
		name  string
		notes []string
		want  engine.Pod
	}{
		{"defaults", nil, want},
		{"empty values are none", []string{AnnotationHostname, "", AnnotationTags, ""}, want},
		{"hostname", []string{AnnotationHostname, "Shop"}, with(func(p *engine.Pod) { p.Hostname, p.ChosenName = "shop", true })},
		{"tags", []string{AnnotationTags, "tag:a, tag:B-2,tag:a"}, with(func(p *engine.Pod) { p.Tags = []string{"tag:a", "tag:B-2"} })},
		{"shields up", []string{annotationShieldsUp, "true"}, with(func(p *engine.Pod) { p.Features.ShieldsUp = true })},
		{"ephemeral", []string{AnnotationEphemeral, "true"}, with(func(p *engine.Pod) { p.Features.Ephemeral = true })},
		{"shields down", []string{annotationShieldsUp, "false"}, want},
		{"accepted routes", []string{annotationAcceptRoutes, "true"}, with(func(p *engine.Pod) { p.Features.AcceptRoutes = true })},
		{"exit node", []string{annotationExitNode, "Gate.example.ts.net."}, with(func(p *engine.Pod) { p.Features.ExitNode = "gate.example.ts.net" })},
		{"exit node's address", []string{annotationExitNode, "fd7a:115c:A1E0::7"}, with(func(p *engine.Pod) { p.Features.ExitNode = "fd7a:115c:a1e0::7" })},
		{"routes", []string{annotationAdvertiseRoutes, "10.43.0.0/16, fd00:1::/112,10.43.0.0/16", annotationAdvertiseExitNode, "true"}, with(func(p *engine.Pod) {
			p.Features.AdvertiseRoutes = []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16"), netip.MustParsePrefix("fd00:1::/112")}
			p.Features.AdvertiseExitNode = true
		})},
		{"other keys", []string{"example.com/enable", "x", "tailscale.com/expose", "true", "Tailscale.org/tags", "x"}, want},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, in, err := From(plugintest.Sandbox("web", append(tt.notes, AnnotationEnabled, "true")...), testDefaults)
			if err != nil || !in || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, %v, %v, want %+v", got, in, err, tt.want)
			}
		})
	}
}

// TestOperatorKeys: the annotations and labels of Tailscale's Kubernetes
// operator, as of its version 1.102, are never taken for misspelt ones of this program.
func TestOperatorKeys(t *testing.T) {
	notes := []string{AnnotationEnabled, "true"}
	for key := range strings.FieldsSeq(`expose proxy-group proxy-class tailnet-ip tailnet-fqdn
		ts-tailnet-target-ip ts-tailnet-target-fqdn experimental-forward-cluster-traffic-via-ingress
		funnel http-redirect http-endpoint managed parent-resource parent-resource-ns
		parent-resource-type finalizer domain svc-type secret-type metrics-target proxygroup
		hostinfo egress-services operator-last-set-cluster-ip operator-last-set-hostname
		owner-references magic-dnsname trigger-reconcile accept-routes`) {
		notes = append(notes, AnnotationPrefix+key, "true")
	}
	if _, in, err := From(plugintest.Sandbox("web", notes...), testDefaults); !in || err != nil {
		t.Errorf("opted in %v, %v", in, err)
	}
}

// manyRoutes is a value with so many routes.
func manyRoutes(n int) string {
	var routes []string
	for i := range n {
		routes = append(routes, fmt.Sprintf("10.43.%d.0/24", i))
	}
	return strings.Join(routes, ",")
}

func TestPodFromRefuses(t *testing.T) {
	const key, in = AnnotationPrefix, AnnotationEnabled
	for _, tt := range []struct {
		name  string
		notes []string
		want  []string // each is in the error
	}{
		{"neither true nor false", []string{in, "yes please"}, []string{in, `"yes please"`, `"true"`}},
		{"upper case", []string{in, "True"}, []string{in, `"True"`}},
		{"white space", []string{in, " true"}, []string{in, `" true"`}},
		{"hostname", []string{in, "true", AnnotationHostname, "my_host"}, []string{AnnotationHostname, `"my_host"`, "letters, digits and dashes"}},
		{"long hostname", []string{in, "true", AnnotationHostname, strings.Repeat("a", 300)}, []string{"300 characters", "…"}},
		{"no tag:", []string{in, "true", AnnotationTags, "tag:a,web"}, []string{AnnotationTags, `"tag:a,web"`, `"web"`, "tag:name"}},
		{"empty tag", []string{in, "true", AnnotationTags, "tag:a,"}, []string{AnnotationTags, `"tag:a,"`, `"" is not a tag`}},
		{"tag with a digit first", []string{in, "true", AnnotationTags, "tag:1"}, []string{"tag:1"}},
		{"shields", []string{in, "true", annotationShieldsUp, "yes"}, []string{annotationShieldsUp, `"yes"`, `"true"`}},
		{"exit node with a bad name", []string{in, "true", annotationExitNode, "my gate"}, []string{annotationExitNode, `"my gate"`, "name of a device"}},
		{"any exit node", []string{in, "true", annotationExitNode, "auto:any"}, []string{annotationExitNode, "name of a device"}},
		{"router with shields up", []string{in, "true", annotationShieldsUp, "true", annotationAdvertiseRoutes, "10.43.0.0/16"}, []string{annotationShieldsUp, `"true"`, `write "false"`}},
		{"exit node with shields up", []string{in, "true", annotationShieldsUp, "true", annotationAdvertiseExitNode, "true"}, []string{annotationShieldsUp, `"true"`, `write "false"`}},
		{"exit node of an exit node", []string{in, "true", annotationExitNode, "gate", annotationAdvertiseExitNode, "true"}, []string{annotationExitNode, annotationAdvertiseExitNode}},
		{"no prefix", []string{in, "true", annotationAdvertiseRoutes, "10.43.0.1"}, []string{annotationAdvertiseRoutes, "10.43.0.0/16"}},
		{"empty prefix", []string{in, "true", annotationAdvertiseRoutes, "10.43.0.0/16,"}, []string{`"" is not a prefix`}},
		{"host bits", []string{in, "true", annotationAdvertiseRoutes, "10.0.0.1/24"}, []string{"10.0.0.1/24", "write 10.0.0.0/24"}},
		{"everything", []string{in, "true", annotationAdvertiseRoutes, "0.0.0.0/0"}, []string{"write " + annotationAdvertiseExitNode}},
		{"all of IPv6", []string{in, "true", annotationAdvertiseRoutes, "::/0"}, []string{"write " + annotationAdvertiseExitNode}},
		{"the tailnet's own", []string{in, "true", annotationAdvertiseRoutes, "100.96.0.0/16"}, []string{"100.64.0.0/10"}},
		{"around the tailnet's own", []string{in, "true", annotationAdvertiseRoutes, "100.0.0.0/8"}, []string{"100.64.0.0/10"}},
		{"metadata", []string{in, "true", annotationAdvertiseRoutes, "169.254.169.254/32"}, []string{"169.254.0.0/16"}},
		{"too many", []string{in, "true", annotationAdvertiseRoutes, manyRoutes(65)}, []string{"65 prefixes", "64 at most"}},
		{"hostnam", []string{in, "true", key + "hostnam", "x"}, []string{key + "hostnam", `"x"`, "write " + AnnotationHostname}},
		{"host-name", []string{in, "true", key + "host-name", "x"}, []string{"write " + AnnotationHostname}},
		{"tag", []string{in, "true", key + "tag", "tag:x"}, []string{"write " + AnnotationTags}},
		{"swapped", []string{in, "true", key + "tasg", "tag:x"}, []string{"write " + AnnotationTags}},
		{"upper-case key", []string{in, "true", key + "Tags", "tag:x"}, []string{key + "Tags", "write " + AnnotationTags}},
		{"enable", []string{key + "enable", "true"}, []string{key + "enable", "write " + in}},
		{"Enabled", []string{key + "Enabled", "true"}, []string{key + "Enabled", "write " + in}},
		{"enbaled next to empty", []string{in, "", key + "enbaled", "true"}, []string{"write " + in}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, in, err := From(plugintest.Sandbox("web", tt.notes...), testDefaults)
			if in || err == nil {
				t.Fatalf("opted in %v, %v", in, err)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
			if len(err.Error()) > 300 {
				t.Errorf("the error is %d bytes long", len(err.Error()))
			}
		})
	}
	if _, in, err := From(plugintest.HostNetwork(plugintest.Sandbox("web", in, "true")), testDefaults); in || !plugintest.ErrContains(err, "hostNetwork") {
		t.Errorf("a pod in the node's network: %v, %v", in, err)
	}
}

func TestPlainPods(t *testing.T) {
	for _, notes := range [][]string{
		nil,
		{AnnotationEnabled, "false"},
		{AnnotationEnabled, ""},
		{AnnotationHostname, "not a label", AnnotationTags, "nor tags"},
		{AnnotationPrefix + "tag", "x", AnnotationPrefix + "hostnam", "x"},
		{AnnotationPrefix + "enable", "false"},
		{AnnotationEnabled, "false", AnnotationPrefix + "enable", "true"},
		{AnnotationPrefix + "expose", "true"},
	} {
		if pod, in, err := From(plugintest.Sandbox("web", notes...), testDefaults); in || err != nil {
			t.Errorf("%q: %+v, %v, %v", notes, pod, in, err)
		}
	}
	if _, in, err := From(plugintest.HostNetwork(plugintest.Sandbox("web")), testDefaults); in || err != nil {
		t.Errorf("plain, in the node's network: %v, %v", in, err)
	}
}

func TestGone(t *testing.T) {
	noPath := plugintest.Sandbox("web")
	noPath.Pid = 0
	noPath.Linux.Namespaces[1].Path = ""
	pathOnly := plugintest.Sandbox("web")
	pathOnly.Pid = 0
	for _, tt := range []struct {
		name string
		sb   *api.PodSandbox
		want bool
	}{
		{"running", plugintest.Sandbox("web"), false},
		{"stopped", plugintest.Stopped(plugintest.Sandbox("web")), true},
		{"stopped, entry without path", noPath, true},
		{"runtime that tells no PID", pathOnly, false},
		{"in the node's network", plugintest.HostNetwork(plugintest.Sandbox("web")), false},
	} {
		if got := Gone(tt.sb); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func TestEditDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"tags", "tags", 0}, {"tag", "tags", 1},
		{"tasg", "tags", 1}, {"enbaled", "enabled", 1}, {"kitten", "sitting", 3}, {"ca", "abc", 3},
	} {
		if got := EditDistance(tt.a, tt.b); got != tt.want {
			t.Errorf("editDistance(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}

// FuzzAnnotations holds that whatever is written there, a pod is refused with
// a short text, left alone, or gets a hostname and tags that a tailnet takes.
func FuzzAnnotations(f *testing.F) {
	f.Add("tailscale.com/enabled", "true", "web", "tag:a,tag:b")
	f.Add("tailscale.com/enable", "true", "Web-1", "tag:a")
	f.Add("tailscale.com/tag", "x", "", "")
	f.Add("x", "", "-a-", ",")
	f.Add("tailscale.com/", "\xff", strings.Repeat("\xe2", 90), "tag:\x00")
	f.Fuzz(func(t *testing.T, key, value, hostname, tags string) {
		pod, in, err := From(plugintest.Sandbox("web", AnnotationEnabled, "true",
			AnnotationHostname, hostname, AnnotationTags, tags, key, value), testDefaults)
		if err != nil {
			if in || len(err.Error()) > 2000+len(key) {
				t.Errorf("opted in %v, %d bytes of error", in, len(err.Error()))
			}
			return
		}
		if !in {
			return
		}
		if err := dnsname.ValidLabel(pod.Hostname); err != nil {
			t.Error(err)
		}
		if len(pod.Tags) == 0 {
			t.Error("no tags")
		}
		for _, tag := range pod.Tags {
			if err := tailcfg.CheckTag(tag); err != nil {
				t.Errorf("%q: %v", tag, err)
			}
		}
	})
}
