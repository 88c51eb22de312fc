// SPDX-License-Identifier: BSD-3-Clause

package podspec

import (
	"strings"
	"testing"

	"tailscale.com/util/dnsname"

	"tailscale-nri/nri-plugin/internal/plugintest"
)

func TestDefaultHostname(t *testing.T) {
	long := strings.Repeat("x", 253)
	for _, tt := range []struct{ cluster, namespace, pod, want string }{
		{"k8s", "default", "web", "k8s-default-web"},
		{"k8s", "default", "web-7d4b9c8f6d-x2xkz", "k8s-default-web-7d4b9c8f6d-x2xkz"},
		{"prod-eu", "default", "web-0", "prod-eu-default-web-0"},
		{"k8s", "kube-system", "dns", "k8s-kube-system-dns-*"},
		{"k8s", "default", "a.b", "k8s-default-a-b-*"},
		{"k8s", "default", "nginx_1", "k8s-default-nginx-1-*"},
		{"k8s", "default", "Upper", "k8s-default-upper-*"},
		{"k8s", "default", "käse", "k8s-default-k--se-*"},
		{"k8s", "default", "x-0123456789", "k8s-default-x-0123456789-*"},
		{"k8s", "default", "x-", "k8s-default-x-*"},
		{"k8s", "default", long, "k8s-default-" + strings.Repeat("x", 40) + "-*"},
		{"", "", "", "*"},
	} {
		got := DefaultHostname(tt.cluster, tt.namespace, tt.pod)
		if head, hashed := strings.CutSuffix(tt.want, "*"); hashed {
			if len(got) != len(head)+hashLen || !strings.HasPrefix(got, head) || !endsInHash(got) {
				t.Errorf("defaultHostname(%q, %q, %q) = %q, want %q", tt.cluster, tt.namespace, tt.pod, got, tt.want)
			}
		} else if got != tt.want {
			t.Errorf("defaultHostname(%q, %q, %q) = %q, want %q", tt.cluster, tt.namespace, tt.pod, got, tt.want)
		}
	}
}

func TestDefaultHostnamesDiffer(t *testing.T) {
	long := strings.Repeat("y", 70)
	seen := make(map[string][2]string)
	for _, in := range [][2]string{
		{"a", "b-c"}, {"a-b", "c"}, {"a-b-c", ""}, {"", "a-b-c"},
		{"a", "b.c"}, {"a", "b_c"}, {"a", "b/c"}, {"a", "B-c"}, {"a.b", "c"},
		{"a", long + "1"}, {"a", long + "2"}, {"a", long}, {long, "a"},
	} {
		name := DefaultHostname("k8s", in[0], in[1])
		if other, ok := seen[name]; ok {
			t.Errorf("%q and %q are both named %s", in, other, name)
		}
		seen[name] = in
		// A pod may call itself what another pod's hashed name is.
		forged := DefaultHostname("k8s", "a", strings.TrimPrefix(name, "k8s-a-"))
		if forged == name && endsInHash(name) {
			t.Errorf("the name %s of %q can be forged", name, in)
		}
	}
}

func TestGivenHostname(t *testing.T) {
	for _, tt := range []struct{ in, want, err string }{
		{"web", "web", ""},
		{"Web-1", "web-1", ""},
		{"1", "1", ""},
		{strings.Repeat("a", 63), strings.Repeat("a", 63), ""},
		{strings.Repeat("a", 64), "", "64 characters"},
		{"", "", "empty"},
		{"a.b", "", "character 2"},
		{"my host", "", "character 3"},
		{" web", "", "character 1"},
		{"käse", "", "character 2"},
		{"-a", "", "dash"},
		{"a-", "", "dash"},
	} {
		got, err := givenHostname(tt.in)
		if got != tt.want || !plugintest.ErrContains(err, tt.err) {
			t.Errorf("givenHostname(%q) = %q, %v, want %q, %q", tt.in, got, err, tt.want, tt.err)
		}
	}
}

// FuzzDefaultHostname holds that every name is a DNS label and that two pods
// never share one.
func FuzzDefaultHostname(f *testing.F) {
	f.Add("default", "web", "default", "web-1")
	f.Add("a", "b-c", "a-b", "c")
	f.Add("a", "b.c", "a", "b-c")
	f.Add("", "", "-", "\x00")
	f.Add("a", strings.Repeat("y", 80), "a", strings.Repeat("y", 81))
	f.Add("a", "x-0123456789", "a", "X-0123456789")
	f.Fuzz(func(t *testing.T, ns1, pod1, ns2, pod2 string) {
		a, b := DefaultHostname("k8s", ns1, pod1), DefaultHostname("k8s", ns2, pod2)
		if err := dnsname.ValidLabel(a); err != nil || a != strings.ToLower(a) {
			t.Errorf("%q of %q, %q: %v", a, ns1, pod1, err)
		}
		if same := ns1 == ns2 && pod1 == pod2; same != (a == b) {
			t.Errorf("%q, %q is named %s and %q, %q is named %s", ns1, pod1, a, ns2, pod2, b)
		}
	})
}
