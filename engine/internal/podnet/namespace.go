// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ErrGone reports that a network namespace, or the link in it, no longer exists. Other
// failures to reach it (too many open files, no permission) are not ErrGone: nothing
// may be given up because of them.
var ErrGone = errors.New("the pod's network namespace is gone")

// Namespace names a network namespace. It is a plain value: it holds no
// descriptor, so it keeps nothing alive, and it can be written to disk.
type Namespace struct {
	// Paths are tried in order: /var/run/netns/cni-…, /proc/PID/ns/net.
	Paths []string `json:"paths"`
	// Dev and Ino are the namespace's identity (stat(2) of the nsfs file;
	// see ioctl_ns(2)). They are unique while the namespace lives.
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
	// Boot and Cookie tell the namespace from its successors. The kernel gives its
	// inode number to the next one that is made, after a reboot in the same order. A
	// path with a PID in it, which is a small number too, may lead to such a successor.
	// Boot is the kernel's boot ID. Cookie is unique in a boot (SO_NETNS_COOKIE, Linux
	// 5.14). If one is "" or 0 it is not known, and not compared.
	Boot   string `json:"boot,omitempty"`
	Cookie uint64 `json:"cookie,omitempty"`
}

// FindNamespace returns the namespace found at the first of paths that leads
// to one. It returns an error that wraps [ErrGone] if none does.
func FindNamespace(paths ...string) (Namespace, error) {
	n := Namespace{Paths: paths}
	h, s, err := n.enter()
	if err != nil {
		return Namespace{}, err
	}
	defer h.Close()
	defer s.Close()
	st, err := statNS(h)
	if err != nil {
		return Namespace{}, err
	}
	n.Dev, n.Ino = uint64(st.Dev), st.Ino
	if n.Boot, err = bootID(); err != nil {
		return Namespace{}, err
	}
	if n.Cookie, err = socketCookie(s.GetFd()); err != nil {
		return Namespace{}, err
	}
	return n, nil
}

// Check returns nil if the namespace can be reached, an error that wraps [ErrGone] if
// it does not exist any more, and another error if that is not known.
func (n Namespace) Check() error {
	s, err := n.dial()
	if err != nil {
		return err
	}
	s.Close()
	return nil
}

// open returns a descriptor of the namespace. The caller closes it as soon as
// its one operation is done.
func (n Namespace) open() (netns.NsHandle, error) {
	h, s, err := n.enter()
	if err != nil {
		return netns.None(), err
	}
	s.Close()
	return h, nil
}

// dial returns a rtnetlink socket in the namespace. The caller closes it as soon as its
// one operation is done.
func (n Namespace) dial() (rtnl, error) {
	h, s, err := n.enter()
	if err != nil {
		return rtnl{}, err
	}
	h.Close()
	return s, nil
}

// enter returns a descriptor of the namespace and a socket in it, both of which the caller
// closes. It takes the first path whose netns has the inode, the boot and the cookie that n
// names; one that n does not name may be any. The error wraps [ErrGone] if no path leads
// there.
func (n Namespace) enter() (netns.NsHandle, rtnl, error) {
	var tried []string
	missing := true
	for _, path := range n.Paths {
		h, err := n.openPath(path)
		if err == nil {
			var s rtnl
			if s, err = openRtnl(h); err != nil {
				h.Close()
				return netns.None(), rtnl{}, fmt.Errorf("opening netlink in the pod's netns: %w", err)
			}
			if err = n.isBehind(s); err == nil {
				return h, s, nil
			}
			s.Close()
			h.Close()
		}
		tried = append(tried, fmt.Sprintf("%s: %v", path, err))
		missing = missing && isMissing(err)
	}
	if !missing {
		return netns.None(), rtnl{}, fmt.Errorf("cannot reach the pod's network namespace (%s)", strings.Join(tried, "; "))
	}
	return netns.None(), rtnl{}, fmt.Errorf("%w (%s)", ErrGone, strings.Join(tried, "; "))
}

var (
	errNoNamespace = errors.New("not a network namespace, or not any more")
	errAnother     = errors.New("another network namespace")
)

// isMissing reports whether err says that no namespace, or another one, is where this
// one was. Any other error does not decide that.
func isMissing(err error) bool {
	// ENXIO: the path leads to a socket, as that of a reused descriptor may.
	for _, is := range []error{unix.ENOENT, unix.ENOTDIR, unix.ESRCH, unix.ENXIO, errNoNamespace, errAnother} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}

func (n Namespace) openPath(path string) (netns.NsHandle, error) {
	h, err := netns.GetFromPath(path)
	if err != nil {
		return h, err
	}
	if err := n.isAt(h); err != nil {
		h.Close()
		return netns.None(), err
	}
	return h, nil
}

// isAt returns nil if h may be the namespace, or if n does not say which one it is.
func (n Namespace) isAt(h netns.NsHandle) error {
	st, err := statNS(h)
	switch {
	case err != nil:
		return err
	case n.Ino != 0 && (st.Ino != n.Ino || uint64(st.Dev) != n.Dev):
		return fmt.Errorf("%w: inode %d, want %d", errAnother, st.Ino, n.Ino)
	case n.Boot == "":
		return nil
	}
	boot, err := bootID()
	if err == nil && boot != n.Boot {
		err = fmt.Errorf("%w: boot %s, want %s", errAnother, boot, n.Boot)
	}
	return err
}

// isBehind returns nil if s is a socket of the namespace, or if n does not say which
// one it is.
func (n Namespace) isBehind(s rtnl) error {
	if n.Cookie == 0 {
		return nil
	}
	cookie, err := socketCookie(s.GetFd())
	if err == nil && cookie != n.Cookie {
		err = fmt.Errorf("%w: cookie %d, want %d", errAnother, cookie, n.Cookie)
	}
	return err
}

// bootID returns the ID that the kernel gave itself at its start (random(4)).
var bootID = sync.OnceValues(func() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("reading the boot ID: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
})

// socketCookie returns the cookie of the namespace that a socket is of, 0 if the kernel
// has none.
func socketCookie(fd int) (uint64, error) {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
		return 0, fmt.Errorf("asking for the netns's cookie: %w", err)
	}
	return cookie, nil
}

// HostBoot names this host, in one of its boots. It uses the boot's ID and, from
// Linux 5.14 on, the cookie of this process's netns: hosts that are containers share a
// kernel, but not the cookie.
func HostBoot() (string, error) {
	boot, err := bootID()
	if err != nil {
		return "", err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("opening a socket: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := socketCookie(fd)
	return fmt.Sprintf("%s %d", boot, cookie), err
}

// statNS returns the identity of the namespace behind h. The path of a netns whose
// mount is gone is an ordinary file, and is refused.
func statNS(h netns.NsHandle) (st unix.Stat_t, err error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(h), &fs); err != nil {
		return st, fmt.Errorf("statfs of netns: %w", err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return st, errNoNamespace
	}
	if err := unix.Fstat(int(h), &st); err != nil {
		return st, fmt.Errorf("stat of netns: %w", err)
	}
	return st, nil
}

// withHandle calls fn with a netlink handle inside the namespace.
func (n Namespace) withHandle(fn func(*netlink.Handle) error) error {
	ns, err := n.open()
	if err != nil {
		return err
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening netlink in the pod's netns: %w", err)
	}
	defer h.Close()
	return fn(h)
}

// do calls fn on a thread inside the namespace. The thread is never used
// again: it ends with its goroutine, which does not unlock it.
func (n Namespace) do(fn func() error) error {
	ns, err := n.open()
	if err != nil {
		return err
	}
	defer ns.Close()
	errc := make(chan error)
	go onSpareThread(func() {
		if err := netns.Set(ns); err != nil {
			errc <- fmt.Errorf("entering the pod's netns: %w", err)
			return
		}
		errc <- fn()
	})
	return <-errc
}

// onSpareThread runs fn on a thread that ends afterwards. The process's first
// thread cannot end: it would stay in the pod's netns and keep it alive.
func onSpareThread(fn func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		fn()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		onSpareThread(fn)
	}()
	<-done
	runtime.UnlockOSThread()
}
