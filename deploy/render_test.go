// SPDX-License-Identifier: BSD-3-Clause

package deploy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"sigs.k8s.io/yaml"

	"tailscale-nri/deploy/internal/labtest"
)

// objects are what a tool rendered, by "Kind/name".
type objects map[string]map[string]any

// kustomize renders a directory as "kubectl apply -k" would send it.
func kustomize(t *testing.T, dir string) objects {
	t.Helper()
	out, err := run(t, "kubectl", "kustomize", dir)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, out)
}

// chart renders the chart as "helm install -n tailscale-nri" would send it.
func chart(t *testing.T, args ...string) objects {
	t.Helper()
	out, err := template(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, out)
}

func template(t *testing.T, args ...string) ([]byte, error) {
	t.Helper()
	return run(t, "helm", append([]string{"template", "tailscale-nri", "chart", "-n", "tailscale-nri"}, args...)...)
}

// run renders with a tool in a network namespace that has no way out, and
// without what the user has set: a rendering takes what is in this directory.
func run(t *testing.T, tool string, args ...string) ([]byte, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), labtest.Built(t, tool, "lab-kube"), args...)
	cmd.Env = []string{"HOME=" + t.TempDir(), "KUBECONFIG=/dev/null"}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return nil, fmt.Errorf("%s %s: %s", tool, strings.Join(args, " "), stderr.Bytes())
	}
	return stdout.Bytes(), err
}

// parse reads a stream of YAML documents.
func parse(t *testing.T, stream []byte) objects {
	t.Helper()
	all := objects{}
	for doc := range strings.SplitSeq(string(stream), "\n---") {
		var o map[string]any
		if err := yaml.UnmarshalStrict([]byte(doc), &o); err != nil {
			t.Fatalf("reading what was rendered: %v\n%s", err, doc)
		}
		if o == nil {
			continue
		}
		name := fmt.Sprintf("%v/%v", o["kind"], at(t, o, "metadata", "name"))
		if all[name] != nil {
			t.Errorf("%s is there twice", name)
		}
		sortNamed(o)
		all[name] = o
	}
	if len(all) == 0 {
		t.Fatal("nothing was rendered")
	}
	return all
}

// sortNamed puts lists in which Kubernetes finds entries by a key, such as
// volumes, into the order of that key, since theirs means nothing.
func sortNamed(v any) {
	switch v := v.(type) {
	case map[string]any:
		for _, child := range v {
			sortNamed(child)
		}
	case []any:
		for _, child := range v {
			sortNamed(child)
		}
		slices.SortStableFunc(v, func(a, b any) int { return cmp.Compare(mergeKey(a), mergeKey(b)) })
	}
}

// mergeKey is the key of a list's entry, "" for one that has none.
func mergeKey(v any) string {
	m, _ := v.(map[string]any)
	for _, key := range []string{"mountPath", "name"} {
		if s, ok := m[key].(string); ok {
			return s
		}
	}
	return ""
}

// at walks down maps by string and lists by int. A path that leads nowhere is
// a failure.
func at(t *testing.T, v any, path ...any) any {
	t.Helper()
	for i, step := range path {
		m, _ := v.(map[string]any)
		l, _ := v.([]any)
		key, _ := step.(string)
		n, isIndex := step.(int)
		switch {
		case m != nil && m[key] != nil:
			v = m[key]
		case isIndex && n < len(l):
			v = l[n]
		default:
			t.Fatalf("there is no %v (of %v)", path[:i+1], path)
		}
	}
	return v
}

// podSpec is the pod of the DaemonSet.
func (o objects) podSpec(t *testing.T) map[string]any {
	t.Helper()
	return at(t, o["DaemonSet/tailscale-nri"], "spec", "template", "spec").(map[string]any)
}

// container is the only one.
func (o objects) container(t *testing.T) map[string]any {
	t.Helper()
	return at(t, o.podSpec(t), "containers", 0).(map[string]any)
}

// data is the ConfigMap.
func (o objects) data(t *testing.T) map[string]any {
	t.Helper()
	return at(t, o["ConfigMap/tailscale-nri"], "data").(map[string]any)
}
