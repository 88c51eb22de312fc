// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mountLayout mounts in the calling thread's namespace what a kubelet's machine has, as the node's configuration wants it.
// What it holds apart from /run lies in the node's directory, so that it outlives the namespace.
func (c Config) mountLayout(n NodeConfig) error {
	if n.K3d {
		// On most machines /var/run is a link to /run; here it becomes a directory, which takes a /var of one's own.
		if err := mountTmpfs("/var", "run", "lib", "log", "tmp"); err != nil {
			return fmt.Errorf("making /var: %w", err)
		}
	}
	if err := c.hideMachine(c.path(n.Name, "run")); err != nil {
		return err
	}
	binds := map[string]string{"lib": "/var/lib", "log": "/var/log"}
	for dir, target := range binds {
		own := c.path(n.Name, dir)
		if err := os.MkdirAll(own, 0o755); err != nil {
			return err
		}
		if err := bind(own, target); err != nil {
			return err
		}
	}
	if n.K3d {
		if err := mountTmpfs("/var/run"); err != nil {
			return fmt.Errorf("making /var/run: %w", err)
		}
	}
	if err := c.hideSysctls(n); err != nil {
		return err
	}
	if n.K3d {
		return nil // all is private since the namespace was made
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("having mounts propagate: %w", err)
	}
	return nil
}

// kubeletSysctls are what a kubelet sets for the whole machine (pkg/kubelet/cm, setupKernelTunables).
var kubeletSysctls = map[string]string{
	"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

// hideSysctls lays a file of the node's over each of these. The kernel lets a pod with a user namespace of its own mount
// /proc only where a whole one is to be seen (fs/namespace.c, mount_too_revealing), so there is one more of it.
func (c Config) hideSysctls(n NodeConfig) error {
	dir, whole := c.path(n.Name, "sysctl"), c.path(n.Name, "proc")
	for _, d := range []string{dir, whole} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("proc", whole, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting %s: %w", whole, err)
	}
	for key, value := range kubeletSysctls {
		target := filepath.Join("/proc/sys", key)
		if _, err := os.Stat(target); err != nil {
			continue // this kernel has no such thing, so the kubelet sets none
		}
		own := filepath.Join(dir, strings.ReplaceAll(key, "/", "_"))
		if err := os.WriteFile(own, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := bind(own, target); err != nil {
			return err
		}
	}
	return nil
}

func bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("binding %s to %s: %w", from, to, err)
	}
	return nil
}

// mountTmpfs mounts an empty directory with these directories in it.
func mountTmpfs(at string, dirs ...string) error {
	if err := unix.Mount("tmpfs", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := os.Mkdir(filepath.Join(at, dir), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// makeCgroups makes a cgroup below the lab's in every hierarchy: a kubelet expects its root to exist, with all the
// controllers that it uses. In cgroup v1 a new cpuset is empty, and takes no process until it is filled.
func (c Config) makeCgroups(name string) error {
	for _, root := range cgroupRoots() {
		for _, dir := range []string{filepath.Join(root, c.Name), filepath.Join(root, c.Name, name)} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fmt.Errorf("making cgroup %s: %w", dir, err)
			}
			if root == cgroupMount {
				if err := handControllersOn(filepath.Dir(dir)); err != nil {
					return err
				}
			}
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				if err := fillCpuset(dir, file); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// kubeletControllers are what a kubelet needs of cgroup v2 (pkg/kubelet/cm, getSupportedUnifiedControllers), as far as
// the machine has them.
var kubeletControllers = []string{"cpu", "cpuset", "memory", "hugetlb", "pids"}

// handControllersOn gives the children of a cgroup the controllers that it has itself, which in cgroup v2 none has until
// it is told (cgroup-v2.rst, "Enabling and Disabling"). The machine's own root is told too, as runc does for any pod.
// Cgroup v1 has no such switch.
func handControllersOn(dir string) error {
	has, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // cgroup v1
	}
	file := filepath.Join(dir, "cgroup.subtree_control")
	given, givenErr := os.ReadFile(file)
	if err := errors.Join(err, givenErr); err != nil {
		return fmt.Errorf("reading the controllers of cgroup %s: %w", dir, err)
	}
	for _, name := range kubeletControllers {
		if !slices.Contains(strings.Fields(string(has)), name) || slices.Contains(strings.Fields(string(given)), name) {
			continue
		}
		if err := os.WriteFile(file, []byte("+"+name), 0o644); err != nil {
			return fmt.Errorf("handing controller %s on to the children of cgroup %s: %w", name, dir, err)
		}
	}
	return nil
}

// fillCpuset hands the parent's value on, where the hierarchy has one and the cgroup has none yet.
func fillCpuset(dir, file string) error {
	own, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil || len(strings.TrimSpace(string(own))) > 0 {
		return nil // no cpuset here, or filled
	}
	value, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
	if err != nil || len(strings.TrimSpace(string(value))) == 0 {
		return nil // cgroup v2, where empty means the parent's
	}
	if err := os.WriteFile(filepath.Join(dir, file), value, 0o644); err != nil {
		return fmt.Errorf("filling %s of cgroup %s: %w", file, dir, err)
	}
	return nil
}

// cgroupMount is where cgroup v2 is mounted, or the hierarchies of v1 are.
const cgroupMount = "/sys/fs/cgroup"

// cgroupRoots are the mounted hierarchies: one of cgroup v2, or many of v1, with an unused v2 at most.
func cgroupRoots() []string {
	if _, err := os.Stat(filepath.Join(cgroupMount, "cgroup.controllers")); err == nil {
		return []string{cgroupMount}
	}
	var roots []string
	dirs, _ := filepath.Glob(cgroupMount + "/*/cgroup.procs")
	for _, dir := range dirs {
		roots = append(roots, filepath.Dir(dir))
	}
	return roots
}
