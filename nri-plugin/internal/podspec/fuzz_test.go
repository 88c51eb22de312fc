// SPDX-License-Identifier: BSD-3-Clause

package podspec

import (
	"strings"
	"testing"
	"unicode/utf8"

	"tailscale.com/util/dnsname"

	"tailscale-nri/nri-plugin/internal/plugintest"
)

// FuzzPod holds that whatever a pod is called and asks for, it is refused with
// a text that names the key, left alone, or gets a hostname that is a DNS label
// in lower case.
func FuzzPod(f *testing.F) {
	long := strings.Repeat("x", 300)
	for _, s := range [][5]string{
		// namespace, name, annotation, value, hostname
		{"default", "web", "", "", ""},
		{"default", "web", AnnotationHostname, "a.b", "web"},
		{"kube-system", "web-7d4b9c6f5-x2x9q", "tailscale.com/hostnam", "web", "WEB"},
		{long, long, AnnotationTags, long, long[:64]},
		{"", "", "Tailscale.com/Enabled", "yes", "-"},
		{"\x00", "\xff", AnnotationTags, "tag:a,,tag:b", "ä"},
		{"a", "b", AnnotationEnabled, "TRUE", ""},
		{"a", "b", AnnotationTags, "\n", "a\x00b"},
		{"a-b", "c", "tailscale.com/" + long, "x", "0"},
	} {
		f.Add(s[0], s[1], s[2], s[3], s[4])
	}
	f.Fuzz(func(t *testing.T, namespace, name, key, value, hostname string) {
		sb := plugintest.Sandbox(name, AnnotationEnabled, "true", AnnotationHostname, hostname, key, value)
		sb.Namespace = namespace
		pod, in, err := From(sb, testDefaults)
		if err != nil {
			expectNamed(t, err, in, key)
			return
		}
		if !in {
			if key != AnnotationEnabled {
				t.Error("it asked, and is left out")
			}
			return
		}
		if err := dnsname.ValidLabel(pod.Hostname); err != nil || len(pod.Hostname) > maxLabel || pod.Hostname != strings.ToLower(pod.Hostname) {
			t.Errorf("hostname %q: %v", pod.Hostname, err)
		}
		if given := sb.Annotations[AnnotationHostname]; given != "" && !strings.EqualFold(given, pod.Hostname) {
			t.Errorf("asked for %q, got %q", given, pod.Hostname)
		}
		if pod.Namespace != namespace || pod.Name != name {
			t.Errorf("%q, %q became %q, %q", namespace, name, pod.Namespace, pod.Name)
		}
	})
}

// expectNamed checks a refusal's text: one line that can be printed, and names
// one of the keys that there are.
func expectNamed(t *testing.T, err error, in bool, key string) {
	t.Helper()
	text := err.Error()
	named := strings.Contains(text, AnnotationHostname) || strings.Contains(text, AnnotationTags) ||
		strings.Contains(text, AnnotationEnabled) || strings.Contains(text, key)
	if in || !named {
		t.Errorf("opted in %v, with the error %q", in, text)
	}
	if utf8.ValidString(key) && (!utf8.ValidString(text) || strings.ContainsAny(strings.ReplaceAll(text, key, ""), "\n\x00")) {
		t.Errorf("the error cannot be printed: %q", text)
	}
}
