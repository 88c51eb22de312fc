// SPDX-License-Identifier: BSD-3-Clause

package podspec

import (
	"os"
	"strings"
	"testing"

	"tailscale-nri/nri-plugin/internal/plugintest"
)

// TestExamplePolicy holds the policy of the documentation against the program.
func TestExamplePolicy(t *testing.T) {
	page, err := os.ReadFile("../../../deploy/FEATURES.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(page), "\n## Policy\n")
	_, after, _ = strings.Cut(after, "```yaml\n")
	text, after, ok := strings.Cut(after, "```\n")
	if !ok {
		t.Fatal("deploy/FEATURES.md: no block of YAML below Policy")
	}
	d := strict()
	d.Policy = mustPolicy(t, text)
	if len(d.Policy.rules) != 3 || len(d.Policy.Ranges) != 1 || d.Policy.hostname.text != standardName {
		t.Errorf("got %+v", d.Policy)
	}
	web := map[string]string{"app": "web", "team": "a"}
	for _, tt := range []struct {
		namespace string
		labels    map[string]string
		notes     []string
		want      string
	}{
		{"shop", web, nil, "k8s-shop-web [tag:shop]"},
		{"shop", nil, nil, ""},
		{"shop", nil, []string{AnnotationEnabled, "true"}, "k8s-shop-web [tag:k8s-pod] shields"},
		{"network", nil, []string{AnnotationEnabled, "true", AnnotationProfile, "prod"}, "k8s-network-web [tag:prod] profile=prod"},
		{"any", map[string]string{AnnotationEnabled: "true"}, nil, "k8s-any-web [tag:k8s-pod] shields"},
		{kubeSystem, map[string]string{AnnotationEnabled: "true"}, nil, ""},
	} {
		pod, ok, err := From(plugintest.SandboxIn(tt.namespace, tt.labels, tt.notes...), d)
		if got := summary(pod, ok); got != tt.want || err != nil {
			t.Errorf("%s %v %q: got %q, %v, want %q", tt.namespace, tt.labels, tt.notes, got, err, tt.want)
		}
	}
	// The refusal that the page shows is the one that a pod gets.
	for line := range strings.Lines(after) {
		if strings.HasPrefix(line, "annotation ") {
			_, _, err := From(plugintest.SandboxIn("shop", web, AnnotationTags, "tag:db"), d)
			if err == nil || err.Error() != strings.TrimSpace(line) {
				t.Errorf("deploy/FEATURES.md says\n%s\nthe program\n%v", line, err)
			}
			return
		}
	}
	t.Error("deploy/FEATURES.md shows no refusal")
}
