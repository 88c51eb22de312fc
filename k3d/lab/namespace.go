// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"tailscale-nri/k3d/lab/internal/nsthread"

	"golang.org/x/sys/unix"
)

// The network namespaces, named as their files below Dir/ns. Those of peers have the peers' names.
const (
	netNS  = "net"
	nodeNS = "node"
)

// mountNS is the name of the mount namespace that belongs to a network namespace.
func mountNS(ns string) string { return ns + "-mnt" }

func (c Config) nsFile(name string) string { return c.path("ns", name) }

// inNetNS runs fn on a thread inside the network namespace name. /proc/sys/net and new sockets are that namespace's.
func (c Config) inNetNS(name string, fn func() error) error {
	ns, err := os.Open(c.nsFile(name))
	if err != nil {
		return fmt.Errorf("opening network namespace %s: %w", name, err)
	}
	defer ns.Close()
	return nsthread.InNetNS(ns, fn)
}

// makeNamespaceDir makes Dir/ns a mount of its own that propagates nowhere: a shared one could not hold a mount
// namespace (mount_namespaces(7)), and would show ours to every service of the machine.
func (c Config) makeNamespaceDir() error {
	dir := c.path("ns")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("making the namespaces' directory: %w", err)
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("binding %s: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making %s private: %w", dir, err)
	}
	return nil
}

// makeNetNS makes a network namespace that lives as long as its file below Dir/ns.
func (c Config) makeNetNS(name string) error {
	file := c.nsFile(name)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return fmt.Errorf("making network namespace %s: %w", name, err)
	}
	return nsthread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making network namespace %s: %w", name, err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", file, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("keeping network namespace %s: %w", name, err)
		}
		return nil
	})
}

// makeMountNS makes a mount namespace that lives as long as its file below Dir/ns; prepare runs inside it.
// The binding is done by another thread, since inside of itself a mount namespace cannot be bound.
func (c Config) makeMountNS(name string, prepare func() error) error {
	file := c.nsFile(name)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return fmt.Errorf("making mount namespace %s: %w", name, err)
	}
	ready, bound := make(chan int, 1), make(chan error, 1)
	go func() {
		tid, ok := <-ready
		if !ok {
			return
		}
		bound <- unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/mnt", tid), file, "", unix.MS_BIND, "")
	}()
	return nsthread.Run(func() error {
		defer close(ready)
		if err := unshareMounts(); err != nil {
			return fmt.Errorf("making mount namespace %s: %w", name, err)
		}
		ready <- unix.Gettid()
		if err := <-bound; err != nil {
			return fmt.Errorf("keeping mount namespace %s: %w", name, err)
		}
		return prepare()
	})
}

func unshareMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
}

// hideMachine gives the calling thread's mount namespace a /run and a /var/lib of its own, and an /etc that cannot be
// written: run is where its /run is seen from outside. The lab's directory stays where it is.
func (c Config) hideMachine(run string) error {
	self, err := unix.Open(c.Dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening %s: %w", c.Dir, err)
	}
	defer unix.Close(self)
	steps := []func() error{
		func() error { return os.MkdirAll(run, 0o755) },
		func() error { return c.hideEtc(run) },
		func() error {
			return unix.Mount("tmpfs", "/var/lib", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755")
		},
		func() error { return unix.Mount(run, "/run", "", unix.MS_BIND, "") },
		func() error { return os.MkdirAll(c.Dir, 0o700) },
		func() error {
			return unix.Mount(fmt.Sprintf("/proc/thread-self/fd/%d", self), c.Dir, "", unix.MS_BIND|unix.MS_REC, "")
		},
	}
	for i, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("giving a namespace its own /run and /var/lib (step %d): %w", i+1, err)
		}
	}
	return nil
}

// hideEtc makes /etc read-only and its resolv.conf the lab's own: a stock tailscaled would write both. Where
// resolv.conf is a link, as systemd makes it, it leads into the /run that is about to be replaced by run.
func (c Config) hideEtc(run string) error {
	if err := unix.Mount("/etc", "/etc", "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := unix.Mount("", "/etc", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return err
	}
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		return nil // there is none, or it leads nowhere: nothing to protect
	}
	own := filepath.Join(run, "resolv.conf")
	if below, ok := strings.CutPrefix(target, "/run/"); ok {
		own = filepath.Join(run, below)
	}
	if err := os.MkdirAll(filepath.Dir(own), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(own, []byte(c.resolvConf()), 0o644); err != nil {
		return err
	}
	return unix.Mount(own, target, "", unix.MS_BIND, "")
}

func (c Config) resolvConf() string {
	if c.Uplink {
		return "nameserver " + uplinkDNS + "\n"
	}
	return "# the lab has no DNS server\n"
}

// command runs name inside the network namespace ns and the mount namespace that belongs to it, if there is one.
// nsenter does not fork here, so the process is name itself.
func (c Config) command(ctx context.Context, ns, name string, args ...string) *exec.Cmd {
	enter := []string{"--net=" + c.nsFile(ns)}
	if mnt := c.nsFile(mountNS(ns)); isNamespace(mnt) {
		enter = append(enter, "--mount="+mnt)
	}
	cmd := exec.CommandContext(ctx, "nsenter", append(append(enter, "--", name), args...)...)
	cmd.Env = c.environ()
	return cmd
}

// environ is the caller's environment with the lab's binaries first in PATH.
func (c Config) environ() []string {
	path := filepath.Join(c.Build, "bin") + ":" + filepath.Join(c.Build, "image") + ":" + os.Getenv("PATH")
	return append(os.Environ(), "PATH="+path)
}
