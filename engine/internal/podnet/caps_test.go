// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"tailscale.com/wgengine/router"

	"tailscale-nri/engine/internal/nstest"
)

// capabilities that a process which serves pods has, by name; the last only where /proc leads to the pods' netns.
var capabilities = map[string]int{
	"NET_ADMIN": unix.CAP_NET_ADMIN, "NET_BROADCAST": unix.CAP_NET_BROADCAST, "NET_RAW": unix.CAP_NET_RAW, "SYS_ADMIN": unix.CAP_SYS_ADMIN, "SYS_PTRACE": unix.CAP_SYS_PTRACE,
}

// servesVar makes the test binary a process that does to the netns at its path what is
// done to a pod's, and prints what failed.
const servesVar = "TSNRI_TEST_SERVES"

// serve is that process.
func serve(path string) error {
	if err := lockSysctls(); err != nil && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("making /proc/sys read-only: %w", err)
	}
	if _, err := OpenWatch(); err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	ns, err := FindNamespace(path)
	if err != nil {
		return fmt.Errorf("find: %w", err)
	}
	link, err := Ensure(ns, "tscaps", nil)
	if err != nil {
		return fmt.Errorf("ensure: %w", err)
	}
	device, err := link.Open(NoStore{})
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer device.Close()
	addrs := []netip.Prefix{netip.MustParsePrefix("100.64.0.9/32"), netip.MustParsePrefix("fd7a:115c:a1e0::9/128")}
	r := link.Router(slog.New(slog.DiscardHandler), nil, nil)
	r.UseExit(Exit{})
	r.Forward(Forward{Everything: true})
	if _, err := r.Fence(); err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	if err := r.Set(&router.Config{LocalAddrs: addrs}); err != nil {
		return fmt.Errorf("set: %w", err)
	}
	if why := r.Trouble(); why != "" || !r.filters() {
		return fmt.Errorf("forward: %s", why)
	}
	return serveDNS(ns)
}

// serveDNS does what is done for a pod that asks for the tailnet's names.
func serveDNS(ns Namespace) error {
	nameserver := netip.MustParseAddr("10.96.0.10")
	if nat, err := EnsureDNS(ns, []netip.Addr{nameserver}); err != nil || !nat {
		return fmt.Errorf("ensure DNS: %v, %w", nat, err)
	}
	d, err := OpenDNS(context.Background(), ns)
	if err != nil {
		return fmt.Errorf("open DNS: %w", err)
	}
	defer d.Close()
	if conn, err := d.DialUDP(netip.AddrPortFrom(dnsService(false), dnsPort)); err != nil {
		return fmt.Errorf("dial: %w", err)
	} else if err := conn.Close(); err != nil {
		return err
	}
	return nil
}

// lockSysctls makes /proc/sys read-only, as it is in a container. The process has a
// mount namespace of its own.
func lockSysctls() error {
	const dir = "/proc/sys"
	if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return err
	}
	if err := os.WriteFile(dir+"/net/ipv6/conf/all/forwarding", []byte("0"), 0); !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("%s can be written: %w", dir, err)
	}
	return nil
}

// TestEachCapabilityIsNeeded serves a pod with the capabilities that the manifests
// give, and again without each of them: the manifests must not give a capability that
// nothing fails without.
func TestEachCapabilityIsNeeded(t *testing.T) {
	base := []string{"NET_ADMIN", "NET_BROADCAST", "NET_RAW", "SYS_ADMIN"}
	pause := exec.Command("sleep", "60") // with all capabilities, as root of the machine has
	if err := pause.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = pause.Process.Kill()
		_ = pause.Wait()
	}()
	// The tests' host stands for a pod here, to try the way to its netns.
	proc := fmt.Sprintf("/proc/%d/ns/net", pause.Process.Pid)
	for _, tt := range []struct {
		name, path string
		with       []string
		fails      string // what does, and how; "" if nothing does
	}{
		{"all of the base's", "", base, ""},
		{"without NET_ADMIN", "", []string{"NET_BROADCAST", "NET_RAW", "SYS_ADMIN"}, "ensure: creating ts0 and tscaps: operation not permitted"},
		{"without NET_BROADCAST", "", []string{"NET_ADMIN", "NET_RAW", "SYS_ADMIN"}, "watch: watching the pods' links: listening to all namespaces"},
		{"without NET_RAW", "", []string{"NET_ADMIN", "NET_BROADCAST", "SYS_ADMIN"}, "open: opening a packet socket on tscaps: operation not permitted"},
		{"without SYS_ADMIN", "", []string{"NET_ADMIN", "NET_BROADCAST", "NET_RAW"}, "find: opening netlink in the pod's netns"},
		{"through /proc without SYS_PTRACE", proc, base, proc + ": permission denied"},
		{"through /proc with it", proc, []string{"NET_ADMIN", "NET_BROADCAST", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := serveWith(t, tt.path, tt.with)
			t.Logf("with %s: %q", strings.Join(tt.with, ", "), got)
			if tt.fails == "" && got != "" || !strings.Contains(got, tt.fails) {
				t.Errorf("failed with %q, want %q", got, tt.fails)
			}
		})
	}
}

// serveWith runs serve in a process with these capabilities, on the netns at path or else a pod's, and returns its
// error.
func serveWith(t *testing.T, path string, caps []string) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	if path == "" {
		pod, err := os.Open(nstest.NewPod(t).Path())
		if err != nil {
			t.Fatal(err)
		}
		defer pod.Close()
		cmd.ExtraFiles = []*os.File{pod}
		path = "/proc/self/fd/3"
	}
	cmd.Env = append(os.Environ(), servesVar+"="+path)
	type result struct {
		out []byte
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread has lost capabilities, and ends here
		if err := keepOnly(caps); err != nil {
			done <- result{nil, err}
			return
		}
		out, err := cmd.Output()
		done <- result{out, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatalf("running a process with %v: %v: %s", caps, r.err, r.out)
	}
	t.Cleanup(func() { Remove("tscaps") })
	return string(r.out)
}

// keepOnly removes from the calling thread the capabilities that a process it starts is
// not to have: root's new process gets all that is in the bounding set
// (capabilities(7)).
func keepOnly(caps []string) error {
	for c := range unix.CAP_LAST_CAP + 1 {
		if slices.ContainsFunc(caps, func(name string) bool { return capabilities[name] == c }) {
			continue
		}
		// EINVAL: the kernel is older than this capability.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("dropping capability %d: %w", c, err)
		}
	}
	return nil
}
