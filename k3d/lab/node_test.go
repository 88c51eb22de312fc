// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestNodes has two nodes fit for a kubelet, one laid out as k3d's are: their pods reach each other, and each node is
// what it says.
func TestNodes(t *testing.T) {
	cfg := testConfig(t)
	cfg.Bare = true
	lab, err := Up(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Down(); err != nil {
			t.Error(err)
		}
		assertNothingRemains(t, lab.cfg)
	})
	usual := addNode(t, lab, NodeConfig{Name: "usual", Number: 1, Kubelet: true})
	k3d := addNode(t, lab, NodeConfig{Name: "k3d", Number: 2, Kubelet: true, K3d: true, CNI: "ptp"})
	assertLayout(t, usual, false)
	assertLayout(t, k3d, true)

	a, b := runPod(t, usual, "a"), runPod(t, k3d, "b")
	pingFrom(t, usual, a, b.IPs[0])
	pingFrom(t, k3d, b, a.IPs[0])

	t.Run("crash and boot", func(t *testing.T) {
		if err := os.WriteFile(k3d.Path("lib", "kept"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := k3d.Crash(); err != nil {
			t.Fatal(err)
		}
		if left := k3d.processes().pids(); len(left) > 0 {
			t.Errorf("still there after the crash: %s", describe(left))
		}
		if err := k3d.Boot(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := k3d.Exec(t.Context(), "stat", "/var/lib/kept"); err != nil {
			t.Error(err)
		}
		assertLayout(t, k3d, true)
		pods, err := k3d.CRI().ListPods(t.Context())
		if err != nil || len(pods) != 1 || pods[0].Ready {
			t.Errorf("after the boot containerd has the pods %+v (%v), want one that has ended", pods, err)
		}
		again := runPod(t, k3d, "again")
		pingFrom(t, usual, a, again.IPs[0])
	})
}

func addNode(t *testing.T, lab *Lab, spec NodeConfig) *Node {
	t.Helper()
	node, err := lab.AddNode(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return node
}

func runPod(t *testing.T, node *Node, name string) Pod {
	t.Helper()
	id, err := node.CRI().RunPod(t.Context(), PodSpec{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	pod, err := node.CRI().PodStatus(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

func pingFrom(t *testing.T, node *Node, from Pod, to string) {
	t.Helper()
	tool := node.cfg.image("labtool")
	if _, err := node.Exec(t.Context(), "nsenter", "--net="+from.NetNS, "--", tool, "ping", to); err != nil {
		t.Errorf("from pod %s: %v", from.Spec.Name, err)
	}
}

// assertLayout looks from inside the node.
func assertLayout(t *testing.T, node *Node, k3d bool) {
	t.Helper()
	inside := func(name string, args ...string) string {
		t.Helper()
		out, err := node.Exec(t.Context(), name, args...)
		if err != nil {
			t.Error(err)
		}
		return strings.TrimSpace(out)
	}
	if real := inside("readlink", "-f", "/var/run"); (real == "/var/run") != k3d {
		t.Errorf("node %s: /var/run is %s", node.Name, real)
	}
	propagation := inside("findmnt", "-n", "-o", "PROPAGATION", "/")
	if want := map[bool]string{true: "private", false: "shared"}[k3d]; propagation != want {
		t.Errorf("node %s: mounts are %s, want %s", node.Name, propagation, want)
	}
	for key, value := range kubeletSysctls {
		file := filepath.Join("/proc/sys", key)
		if got := inside("cat", file); got != value {
			t.Errorf("node %s: %s is %s inside", node.Name, key, got)
		}
		// Of the kubelet's writing to it nothing comes to the machine when it is not a file of /proc.
		if got := inside("stat", "--file-system", "--format=%T", file); got == "proc" {
			t.Errorf("node %s: %s is the machine's", node.Name, key)
		}
	}
	if _, err := node.Exec(t.Context(), "test", "-e", "/var/lib/containerd-opt/bin"); err != nil {
		t.Errorf("node %s: containerd has made its directory for plugins elsewhere, on the machine: %v", node.Name, err)
	}
	for _, root := range cgroupRoots() {
		dir := filepath.Join(root, node.CgroupParent())
		if _, err := os.Stat(dir); err != nil {
			t.Errorf("node %s: %v", node.Name, err)
		}
		if root == cgroupMount {
			assertControllers(t, root, dir)
		}
	}
}

// assertControllers has a cgroup have all that a kubelet wants of those that the root has.
func assertControllers(t *testing.T, root, dir string) {
	t.Helper()
	read := func(dir string) []string {
		text, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
		if err != nil {
			t.Error(err)
		}
		return strings.Fields(string(text))
	}
	has, got := read(root), read(dir)
	for _, name := range kubeletControllers {
		if slices.Contains(has, name) && !slices.Contains(got, name) {
			t.Errorf("cgroup %s has no controller %s: %q", dir, name, got)
		}
	}
}

// TestHandControllersOn writes to a directory that looks like a cgroup of v2: the kernel takes one name after the other.
func TestHandControllersOn(t *testing.T) {
	for _, tt := range []struct{ has, given, want string }{
		{"cpuset cpu io memory", "cpuset memory", "+cpu"},
		{"cpu io", "cpu", "cpu"}, // nothing is written
		{"io rdma", "", ""},
	} {
		dir := t.TempDir()
		for file, text := range map[string]string{"cgroup.controllers": tt.has, "cgroup.subtree_control": tt.given} {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		err := handControllersOn(dir)
		if got, _ := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control")); err != nil || string(got) != tt.want {
			t.Errorf("of %q with %q given: wrote %q, %v, want %q", tt.has, tt.given, got, err, tt.want)
		}
	}
	if err := handControllersOn(t.TempDir()); err != nil {
		t.Errorf("cgroup v1: %v", err)
	}
}

func TestNodeConfig(t *testing.T) {
	for _, tt := range []struct {
		spec NodeConfig
		want string
	}{
		{NodeConfig{}, ""},
		{NodeConfig{Name: "n1", Number: 9, CNI: "ptp"}, ""},
		{NodeConfig{Name: "net"}, `node name "net" is taken`},
		{NodeConfig{Name: "N1"}, `node name "N1" is taken or not lower-case`},
		{NodeConfig{Number: 10}, "node number 10 is out of range; give one from 0 to 9"},
		{NodeConfig{CNI: "flannel"}, `CNI plugin "flannel" is none of the lab's; give bridge or ptp`},
	} {
		_, err := tt.spec.withDefaults()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.spec, err, tt.want)
		}
	}
	if n := (NodeConfig{Number: 2}); n.IP4() != "172.30.69.13" || n.IP6() != "2001:db8:6e72:69::13" || n.PodSubnet4() != "10.86.2.0/24" {
		t.Errorf("number 2 has %s, %s, %s", n.IP4(), n.IP6(), n.PodSubnet4())
	}
}
