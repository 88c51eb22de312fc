// SPDX-License-Identifier: BSD-3-Clause

package k3s

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"text/template"

	"tailscale-nri/deploy/internal/labtest"
)

// node is a k3s node, as far as containerd's configuration goes.
type node struct {
	Dir       string // of containerd
	Imports   bool   // reads drop-ins
	Rootless  bool
	Templates string // where an admin puts templates and drop-ins
	oldest    bool   // has containerd 1.7, and knows templates of version 2 only
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{Dir: filepath.Join(dir, "c"), Templates: filepath.Join(dir, "etc")}
	for _, d := range []string{n.Dir, filepath.Join(n.Templates, "config-v3.toml.d"), filepath.Join(n.Templates, "config.toml.d")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// put copies one of our files to where its own comment says, with changes: what is to be replaced, and by what.
func (n *node) put(t *testing.T, name string, changes ...string) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(n.Templates, name)
	if filepath.Ext(name) == ".toml" {
		to = filepath.Join(n.Templates, "config-v3.toml.d", name)
	}
	write(t, to, strings.NewReplacer(changes...).Replace(string(data)))
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// render writes the configuration as k3s does at each start (pkg/agent/containerd, writeContainerdConfig): the template
// of version 3 if there is one, else that of version 2, else its own; "base" in it is k3s's own of the same version.
func (n *node) render(t *testing.T) string {
	t.Helper()
	generations := []struct{ file, base string }{
		{"config-v3.toml.tmpl", "testdata/base-v3.toml.tmpl"},
		{"config.toml.tmpl", "testdata/base-v2.toml.tmpl"},
	}
	if n.oldest {
		generations = generations[1:]
	}
	text, base := `{{ template "base" . }}`, generations[0].base
	for _, g := range generations {
		data, err := os.ReadFile(filepath.Join(n.Templates, g.file))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		text, base = string(data), g.base
		break
	}
	own, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	compiled := template.Must(template.New("compiled_template").Parse(text))
	template.Must(compiled.New("base").Parse(string(own)))
	config := filepath.Join(n.Dir, "config.toml")
	out, err := os.Create(config)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := compiled.Execute(out, n); err != nil {
		t.Fatal(err)
	}
	return config
}

// nriTable is what containerd makes of a configuration and its imports: the settings of NRI and of its validator.
func nriTable(t *testing.T, config string) (map[string]string, error) {
	t.Helper()
	out, err := exec.Command(labtest.Built(t, "containerd", "lab-tools"), "--config", config, "config", "dump").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = errors.New(string(exit.Stderr))
		}
		return nil, err
	}
	return nriSettings(string(out)), nil
}

// nriSettings reads them from a configuration in full.
func nriSettings(dump string) map[string]string {
	settings, ours := map[string]string{}, false
	for line := range strings.Lines(dump) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			ours = strings.HasPrefix(line, "[plugins.'io.containerd.nri.v1.nri'")
		}
		if key, value, found := strings.Cut(line, " = "); found && ours {
			settings[key] = value
		}
	}
	return settings
}

// TestSwitchesOn: each file switches NRI on where its comment says. containerd 2 has it on by itself, so each is tried
// with the opposite too, to see that it is this file that containerd obeys.
func TestSwitchesOn(t *testing.T) {
	for _, tt := range []struct {
		name  string
		node  node
		files []string
	}{
		{"drop-in", node{Imports: true}, []string{"50-nri.toml"}},
		{"template without drop-ins", node{}, []string{"config-v3.toml.tmpl"}},
		{"template of version 2", node{}, []string{"config.toml.tmpl"}},
		{"template of version 2, k3s with containerd 1.7", node{oldest: true}, []string{"config.toml.tmpl"}},
		{"all of them", node{Imports: true}, []string{"config-v3.toml.tmpl", "config.toml.tmpl", "50-nri.toml"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, disable := range []string{"false", "true"} {
				n := newNode(t)
				n.Imports, n.oldest = tt.node.Imports, tt.node.oldest
				for _, file := range tt.files {
					n.put(t, file, "disable = false", "disable = "+disable)
				}
				got, err := nriTable(t, n.render(t))
				if err != nil || got["disable"] != disable {
					t.Errorf("with disable = %s containerd has %q, %v", disable, got["disable"], err)
				}
			}
		})
	}
}

// TestNothingToDo: with containerd 2 NRI is on without any file, and the drop-in is first among equals only: what an
// admin has put before it gives way, what comes after it prevails.
func TestNothingToDo(t *testing.T) {
	const off = "version = 3\n[plugins.'io.containerd.nri.v1.nri']\n  disable = true\n"
	for _, tt := range []struct{ before, after, want string }{
		{"", "", "false"}, {off, "", "false"}, {"", off, "true"},
	} {
		n := newNode(t)
		n.Imports = true
		for name, text := range map[string]string{"10-admin.toml": tt.before, "90-admin.toml": tt.after} {
			if text != "" {
				write(t, filepath.Join(n.Templates, "config-v3.toml.d", name), text)
			}
		}
		if tt.before+tt.after != "" {
			n.put(t, "50-nri.toml")
		}
		got, err := nriTable(t, n.render(t))
		if err != nil || got["disable"] != tt.want {
			t.Errorf("disable = %q, want %s, %v", got["disable"], tt.want, err)
		}
	}
}

// TestRequiredPlugin: the files that make containers wait go next to the one that switches NRI on and leave it on.
func TestRequiredPlugin(t *testing.T) {
	for file, want := range map[string]map[string]string{
		"required-plugin.toml": {
			"disable": "false", "enable": "true", "required_plugins": "[]", "tolerate_missing_plugins_annotation": "''",
		},
		"required-plugin-everywhere.toml": {
			"disable": "false", "enable": "true", "required_plugins": "['tailscale']",
			"tolerate_missing_plugins_annotation": "'tolerate-missing-nri-plugins.noderesource.dev'",
		},
	} {
		n := newNode(t)
		n.Imports = true
		n.put(t, "50-nri.toml")
		n.put(t, file)
		got, err := nriTable(t, n.render(t))
		if err != nil {
			t.Fatal(err)
		}
		for key, value := range want {
			if got[key] != value {
				t.Errorf("%s: %s = %s, want %s", file, key, got[key], value)
			}
		}
	}
}

// TestElsewhere: a containerd that is not k3s's reads a drop-in where its config.toml names the directory, and nowhere
// else, whatever its own default is. It has an /etc of its own.
func TestElsewhere(t *testing.T) {
	for config, want := range map[string]string{
		"version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n": "true",
		"version = 2\nimports = ['/etc/containerd/conf.d/*.toml']\n": "true",
		"version = 3\n": "false",
		"version = 2\n": "false",
	} {
		cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", `set -e
			mount -t tmpfs none /etc && mkdir -p /etc/containerd/conf.d
			cp required-plugin.toml /etc/containerd/conf.d && printf %s "$CONFIG" >/etc/containerd/config.toml
			exec "$CONTAINERD" config dump`)
		cmd.Env = append(os.Environ(), "CONFIG="+config, "CONTAINERD="+labtest.Built(t, "containerd", "lab-tools"))
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%q: %v", config, err)
		}
		if got := nriSettings(string(out))["enable"]; got != want {
			t.Errorf("%q: the validator is on: %s, want %s", config, got, want)
		}
	}
}

// TestRootless: the base of a rootless k3s switches NRI off in a table of its own, so a template that appends one stops
// containerd. That is why the README calls it unsupported.
func TestRootless(t *testing.T) {
	n := newNode(t)
	n.Rootless = true
	if got, err := nriTable(t, n.render(t)); err != nil || got["disable"] != "true" {
		t.Fatalf("the base alone: %q, %v", got, err)
	}
	n.put(t, "config-v3.toml.tmpl")
	if _, err := nriTable(t, n.render(t)); err == nil || !strings.Contains(err.Error(), "already exists") {
		t.Errorf("with the table twice containerd says %v", err)
	}
}
