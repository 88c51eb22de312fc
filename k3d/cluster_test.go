// SPDX-License-Identifier: BSD-3-Clause

package k3d

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"sigs.k8s.io/yaml"
)

// k3dModule is where k3d's schema is read: the release that the README names. Nothing of it is built.
const k3dModule = "github.com/k3d-io/k3d/v5@v5.9.0"

// schema is k3d's own, of the apiVersion in our file.
func schema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	out, err := exec.Command("go", "mod", "download", "-json", k3dModule).Output()
	if err != nil {
		t.Fatalf("downloading %s: %v\n%s", k3dModule, err, out)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(module.Dir, "pkg/config/v1alpha5/schema.json")
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	s, err := compiler.Compile(file)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// expanded is our file as k3d reads it, with the environment's variables in it.
func expanded(t *testing.T) []byte {
	t.Helper()
	top, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return []byte(os.Expand(string(text), func(name string) string {
		if name != "PWD" {
			t.Errorf("cluster.yaml reads $%s, which make k3d-up does not set", name)
		}
		return top
	}))
}

func check(t *testing.T, s *jsonschema.Schema, text []byte) error {
	t.Helper()
	data, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return s.Validate(value)
}

// TestClusterConfig: k3d takes the file, and would not take it with a field misspelt.
func TestClusterConfig(t *testing.T) {
	s, text := schema(t), expanded(t)
	if err := check(t, s, text); err != nil {
		t.Error(err)
	}
	for _, field := range []string{"agents", "volume", "nodeFilters", "extraArgs"} {
		wrong := bytes.Replace(text, []byte(field+":"), []byte(field+"X:"), 1)
		if err := check(t, s, wrong); err == nil {
			t.Errorf("the schema takes %sX for %s", field, field)
		}
	}
}

// TestDropIn: the file that is mounted is there, and every node gets it where k3s reads it.
func TestDropIn(t *testing.T) {
	var config struct {
		Volumes []struct {
			Volume      string
			NodeFilters []string
		}
	}
	if err := yaml.Unmarshal(expanded(t), &config); err != nil {
		t.Fatal(err)
	}
	if len(config.Volumes) != 1 {
		t.Fatalf("volumes %+v, want one", config.Volumes)
	}
	volume := config.Volumes[0]
	source, target, _ := strings.Cut(volume.Volume, ":")
	if _, err := os.Stat(source); err != nil || !filepath.IsAbs(source) {
		t.Errorf("Docker cannot mount %s: %v", source, err)
	}
	if want := "/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d/" + filepath.Base(source) + ":ro"; target != want {
		t.Errorf("mounted at %s, want %s", target, want)
	}
	if !slices.Equal(volume.NodeFilters, []string{"server:*", "agent:*"}) {
		t.Errorf("mounted in %q", volume.NodeFilters)
	}
}
