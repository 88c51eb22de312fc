// SPDX-License-Identifier: BSD-3-Clause

package deploy

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"tailscale-nri/deploy/internal/labtest"
)

// notForConfigMap are the variables that a user does not set there.
func notForConfigMap() map[string]string {
	return map[string]string{
		"TS_OAUTH_CLIENT_ID":     "it goes with its secret, into the Secret",
		"TS_OAUTH_CLIENT_SECRET": "a secret",
		"TS_AUTHKEY":             "a secret",
		"TS_ID_TOKEN_FILE":       "a mount of the DaemonSet decides it",
		"TS_STATE_SECRETS":       "a mount of the DaemonSet decides it",
		"TS_KUBERNETES_STATUS":   "a mount of the DaemonSet decides it",
		"TS_STATE_DIR":           "a mount of the DaemonSet decides it",
		"TS_STATUS_SOCKET":       "a mount of the DaemonSet decides it",
		"NRI_SOCKET":             "a mount of the DaemonSet decides it",
		"POD_UID":                "the kubelet knows it",
		"NODE_NAME":              "the kubelet knows it",
		"TS_CONFIG_DIR":          "it is where the ConfigMap is mounted",
	}
}

// TestConfigMap holds the base's ConfigMap against the program's variables,
// both ways, and its values against the program's defaults.
func TestConfigMap(t *testing.T) {
	data, known := kustomize(t, "base").data(t), settings(t)
	for key, value := range data {
		standard, ok := known[key]
		switch {
		case !ok || notForConfigMap()[key] != "":
			t.Errorf("base/configmap.yaml: %s is none of what a user sets (%s)", key, notForConfigMap()[key])
		case key == "TS_TAGS":
			// Its default depends on the credentials, so the program has to
			// see that it was not set.
			standard = ""
		}
		if value != standard {
			t.Errorf("base/configmap.yaml: %s is %q, the program's default %q", key, value, standard)
		}
	}
	for key := range known {
		if _, ok := data[key]; !ok && notForConfigMap()[key] == "" {
			t.Errorf("base/configmap.yaml: no %s, which the program reads", key)
		}
	}
	for key := range notForConfigMap() {
		if _, ok := known[key]; !ok {
			t.Errorf("%s is not a variable of the program", key)
		}
	}
}

// TestVariables: a variable that any manifest sets is one of the program's.
func TestVariables(t *testing.T) {
	known := settings(t)
	check := func(where string, keys []string) {
		for _, key := range keys {
			if _, ok := known[key]; !ok {
				t.Errorf("%s: the program knows no %s", where, key)
			}
		}
	}
	for name, all := range renderings(t) {
		check(name, slices.Collect(maps.Keys(all.data(t))))
		for _, e := range at(t, all.container(t), "env").([]any) {
			if variable := at(t, e, "name").(string); variable != "SSL_CERT_FILE" { // Go's own
				check(name, []string{variable})
			}
		}
	}
	for _, path := range []string{"base/secret.example.yaml", "overlays/headscale/secret.example.yaml"} {
		check(path, slices.Collect(maps.Keys(at(t, example(t, path), "stringData").(map[string]any))))
	}
	var schema map[string]any
	if err := json.Unmarshal([]byte(read(t, "chart/values.schema.json")), &schema); err != nil {
		t.Fatal(err)
	}
	got := slices.Sorted(maps.Keys(at(t, schema, "properties", "config", "properties").(map[string]any)))
	if want := slices.Sorted(maps.Keys(kustomize(t, "base").data(t))); !slices.Equal(got, want) {
		t.Errorf("chart/values.schema.json allows the variables %v, the ConfigMap has %v", got, want)
	}
}

// TestMounts: the program's default paths are mounted, and so are the paths that the
// manifests set.
func TestMounts(t *testing.T) {
	known := settings(t)
	for name, all := range renderings(t) {
		c := all.container(t)
		want := []string{known["TS_STATE_DIR"], filepath.Dir(known["TS_STATUS_SOCKET"]), filepath.Dir(known["NRI_SOCKET"])}
		for _, e := range at(t, c, "env").([]any) {
			path, ok := e.(map[string]any)["value"].(string)
			if !ok || !filepath.IsAbs(path) {
				continue // it is not a path
			}
			if strings.HasSuffix(at(t, e, "name").(string), "_FILE") {
				path = filepath.Dir(path)
			}
			want = append(want, path)
		}
		var got []string
		for _, m := range at(t, c, "volumeMounts").([]any) {
			got = append(got, at(t, m, "mountPath").(string))
		}
		for _, path := range want {
			if !slices.Contains(got, path) {
				t.Errorf("%s: nothing is mounted at %s", name, path)
			}
		}
	}
}

// TestProbes: the program has the commands that the kubelet calls it by.
func TestProbes(t *testing.T) {
	help := program(t, nil, "-help")
	for name, all := range renderings(t) {
		for _, probe := range []string{"readinessProbe", "livenessProbe"} {
			command := at(t, all.container(t), probe, "exec", "command").([]any)
			if len(command) != 2 || command[0] != "/tailscale-nri" {
				t.Errorf("%s: the %s runs %v", name, probe, command)
				continue
			}
			if listed := regexp.MustCompile(`(?m)^  tailscale-nri (\S+ \| )*` + command[1].(string) + ` `); !listed.MatchString(help) {
				t.Errorf("%s: the %s runs %v, and -help has no such command", name, probe, command)
			}
		}
	}
}

// TestValues has the program read what the ConfigMaps say. Credentials are
// left out, so that it ends at once; a complaint about anything else means
// that a value is bad, or a placeholder still there.
func TestValues(t *testing.T) {
	for name, all := range renderings(t) {
		want := []string{"credentials"}
		switch name {
		case "k3d":
			want = []string{`CLUSTER_NAME is "REPLACE-ME"`, "credentials"}
		case "headscale":
			want = []string{"TS_LOGIN_SERVER is not a plain URL", "credentials"}
		case "workload-identity":
			want = []string{"TS_OAUTH_CLIENT_ID"}
		}
		env := map[string]string{}
		for key, value := range all.data(t) {
			env[key] = value.(string)
		}
		for _, e := range at(t, all.container(t), "env").([]any) {
			if value, ok := e.(map[string]any)["value"].(string); ok {
				env[at(t, e, "name").(string)] = value
			}
		}
		delete(env, "TS_CONFIG_DIR") // with it the program would wait for better times
		lines := strings.Split(strings.TrimSpace(program(t, env)), "\n")
		if len(lines) != len(want) {
			t.Errorf("%s: the program says %q, want %d lines about %q", name, lines, len(want), want)
			continue
		}
		for i := range want {
			if !strings.Contains(strings.ReplaceAll(lines[i], `\"`, `"`), want[i]) { // the log quotes
				t.Errorf("%s: the program says %q, want %q in it", name, lines[i], want[i])
			}
		}
	}
}

// program runs the real program to its end and returns all its output.
func program(t *testing.T, env map[string]string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), labtest.Built(t, "tailscale-nri", "build"), args...)
	cmd.Env = []string{}
	for key, value := range env {
		cmd.Env = append(cmd.Env, key+"="+value)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return out.String()
}

// settings reads the program's variables with their defaults out of its
// source: the table in the function settings, and the constants it names.
func settings(t *testing.T) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../nri-plugin/internal/settings/settings.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	constants, table := map[string]string{}, map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ValueSpec:
			if len(n.Names) == 1 && len(n.Values) == 1 {
				constants[n.Names[0].Name] = literal(n.Values[0])
			}
		case *ast.CompositeLit:
			if len(n.Elts) != 3 {
				return true
			}
			if name, ok := n.Elts[0].(*ast.Ident); ok {
				table[constants[name.Name]] = literal(n.Elts[1])
			}
		}
		return true
	})
	if len(table) == 0 {
		t.Fatal("../nri-plugin/internal/settings/settings.go: no table of variables was found")
	}
	return table
}

// literal is the value of a string literal, "" for any other expression.
func literal(e ast.Expr) string {
	lit, ok := e.(*ast.BasicLit)
	if !ok {
		return ""
	}
	s, err := strconv.Unquote(lit.Value)
	if err != nil {
		return ""
	}
	return s
}
