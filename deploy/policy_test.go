// SPDX-License-Identifier: BSD-3-Clause

package deploy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

// TestPolicyComponent: the overlay that deploy/FEATURES.md shows is what the chart
// renders for the same policy, and names the file by the environment alone, so
// that a missing ConfigMap does not mean a wider policy.
func TestPolicyComponent(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"base", "components"} {
		if err := os.CopyFS(filepath.Join(root, dir), os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
	}
	_, page, _ := strings.Cut(read(t, "FEATURES.md"), "```yaml\ncomponents:")
	shown, _, ok := strings.Cut(page, "```\n")
	if !ok {
		t.Fatal("FEATURES.md shows no overlay")
	}
	dir := filepath.Join(root, "overlays", "mine")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"policy.yaml":        "rules:\n- optIn: true",
		"kustomization.yaml": "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../../base]\ncomponents:" + shown,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mine := kustomize(t, dir)
	if diff := gocmp.Diff(mine, chart(t, "--set", "namespace.create=true,policy.rules[0].optIn=true")); diff != "" {
		t.Errorf("the chart (+) is not the overlay (-):\n%s", diff)
	}
	data := mine.data(t)
	if data["policy.yaml"] != "rules:\n- optIn: true" || data["TS_POLICY_FILE"] != "" {
		t.Errorf("the ConfigMap has %v", data)
	}
	if env := named(t, mine.container(t), "env", "TS_POLICY_FILE"); at(t, env, "value") != "/etc/tailscale-nri/policy.yaml" {
		t.Errorf("the environment has %v", env)
	}
}
