// SPDX-License-Identifier: BSD-3-Clause

// Package nstest gives tests network namespaces of their own.
//
// [Main] runs a package's tests in a child process whose netns, the "host" of
// the tests, is new and empty, and ends with it. It needs root, or user
// namespaces that ordinary users may make. [NewPod] makes a pod's netns next
// to it. Nothing appears in the machine's own netns, and nothing is left behind,
// however the tests end.
//
// What this package does not do: it makes no mounts and no named netns, and
// it never skips: a machine that cannot run kernel tests fails them.
package nstest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// The first thread cannot end, so it must not be one that enters a pod's
// netns and is thrown away: the main goroutine keeps it.
func init() { runtime.LockOSThread() }

const inside = "TSNRI_TEST_NETNS"

// Main is to be called by TestMain, with its result as the exit status.
func Main(m *testing.M) int {
	if slices.Contains(os.Args, "-test.fuzzworker") {
		return m.Run() // talks to its parent over descriptors, and needs no netns
	}
	if os.Getenv(inside) != "" {
		if err := errors.Join(raiseLoopback(), addUplink()); err != nil {
			fmt.Fprintln(os.Stderr, "setting up the tests' netns:", err)
			return 1
		}
		return m.Run()
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	err := cmd.Run() // on the locked thread, whose end Pdeathsig follows
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	fmt.Fprintf(os.Stderr, "running the tests in a netns of their own (needs root or user namespaces): %v\n", err)
	return 1
}

func raiseLoopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// HostAddr is an address of the tests' netns that is not on lo: Tailscale
// takes a machine that has nothing else for one without a network. It is a
// private one, since a client goes over to HTTPS at its second call of a
// control plane that is plain HTTP elsewhere (control/ts2021/client.go).
var HostAddr = netip.MustParseAddr("172.30.70.1")

// addUplink gives the tests' netns HostAddr, on an interface that leads
// nowhere.
func addUplink() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "uplink"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "nowhere"}); err != nil {
		return fmt.Errorf("creating an uplink: %w", err)
	}
	for _, name := range []string{"nowhere", "uplink"} {
		link, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(link)
		}
		if err == nil && name == "uplink" {
			err = netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: HostAddr.AsSlice(), Mask: net.CIDRMask(24, 32)}})
		}
		if err != nil {
			return fmt.Errorf("setting up %s: %w", name, err)
		}
	}
	return nil
}

// Pod is a pod's network namespace.
type Pod struct {
	t  testing.TB
	ns netns.NsHandle
}

// NewPod makes a netns with lo up. It ends with the test, or with [Pod.End].
func NewPod(t testing.TB) *Pod {
	t.Helper()
	p := &Pod{t: t, ns: netns.None()}
	errc := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		var err error
		p.ns, err = netns.New()
		if err == nil {
			err = raiseLoopback()
		}
		errc <- err
	}()
	if err := <-errc; err != nil {
		t.Fatalf("making a pod's netns: %v", err)
	}
	t.Cleanup(p.End)
	return p
}

// Path returns a path that leads to the netns until [Pod.End].
func (p *Pod) Path() string { return fmt.Sprintf("/proc/self/fd/%d", int(p.ns)) }

// End lets go of the netns. The kernel takes it away once no socket uses it.
func (p *Pod) End() {
	if p.ns.IsOpen() {
		p.ns.Close()
	}
}

// Do calls fn on a thread inside the netns. Sockets that fn opens belong to
// the pod.
func (p *Pod) Do(fn func() error) {
	p.t.Helper()
	errc := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(p.ns); err != nil {
			errc <- fmt.Errorf("entering the pod's netns: %w", err)
			return
		}
		errc <- fn()
	}()
	if err := <-errc; err != nil {
		p.t.Fatal(err)
	}
}

// Netlink returns a netlink handle inside the netns, closed with the test.
func (p *Pod) Netlink() *netlink.Handle {
	p.t.Helper()
	h, err := netlink.NewHandleAt(p.ns)
	if err != nil {
		p.t.Fatalf("opening netlink in the pod: %v", err)
	}
	p.t.Cleanup(h.Close)
	return h
}
