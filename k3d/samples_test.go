// SPDX-License-Identifier: BSD-3-Clause

package k3d

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// object is the part of a manifest that makes a pod opt in.
type object struct {
	Kind     string
	Metadata struct{ Annotations map[string]string }
	Spec     struct {
		Template struct {
			Metadata struct{ Annotations map[string]string }
		}
	}
}

// TestSamples: each sample says in one line what it shows, and its pods opt in; an annotation that stands next to the
// pod template instead of in it would be ignored.
func TestSamples(t *testing.T) {
	files, err := filepath.Glob("samples/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(text, []byte("# ")) || strings.Count(string(text), "#") != 1 {
			t.Errorf("%s does not begin with the one line that explains it", file)
		}
		for _, part := range strings.Split(string(text), "\n---\n") {
			var o object
			if err := yaml.Unmarshal([]byte(part), &o); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			kinds = append(kinds, o.Kind)
			annotations := o.Spec.Template.Metadata.Annotations
			if o.Kind == "Pod" {
				annotations = o.Metadata.Annotations
			}
			if o.Kind != "Service" && annotations["tailscale.com/enabled"] != "true" {
				t.Errorf("%s: the pods of the %s do not opt in", file, o.Kind)
			}
		}
	}
	slices.Sort(kinds)
	if want := []string{"Job", "Pod", "Service", "StatefulSet"}; !slices.Equal(kinds, want) {
		t.Errorf("samples of %q, want %q", kinds, want)
	}
}
