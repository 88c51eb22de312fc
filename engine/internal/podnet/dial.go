// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// DialUDP returns a socket of the pod that is connected to the address. It does not
// wait. Each socket has a source port of its own, as a query of the pod's own programs
// would: it cannot be guessed, and load balancers that go by ports work.
func (d *DNS) DialUDP(to netip.AddrPort) (net.Conn, error) {
	f, err := d.connect(unix.SOCK_DGRAM, to)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return d.keep(net.FileConn(f))
}

// DialTCP connects from within the pod.
func (d *DNS) DialTCP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	f, err := d.connect(unix.SOCK_STREAM, to)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := awaitConnected(ctx, f); err != nil {
		return nil, fmt.Errorf("connecting to %v from within the pod: %w", to, err)
	}
	return d.keep(net.FileConn(f))
}

// podConn is a connection that ends with its DNS.
type podConn struct {
	net.Conn
	d *DNS
}

func (c *podConn) Close() error {
	c.d.conns.Delete(c)
	return c.Conn.Close()
}

// SyscallConn implements [syscall.Conn].
func (c *podConn) SyscallConn() (syscall.RawConn, error) { return c.Conn.(syscall.Conn).SyscallConn() }

// keep notes a connection until it is closed.
func (d *DNS) keep(conn net.Conn, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	c := &podConn{conn, d}
	d.conns.Store(c, nil)
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.fd < 0 { // Close may not have seen it
		c.Close()
		return nil, net.ErrClosed
	}
	return c, nil
}

// closeConns closes the connections that were dialed. TCP connections are reset: their
// other end may be gone, and the kernel would wait for an answer in the pod's netns.
func (d *DNS) closeConns() {
	d.conns.Range(func(c, _ any) bool {
		if tcp, ok := c.(*podConn).Conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = c.(*podConn).Close()
		return true
	})
}

// connect begins a connection. No thread waits for it, since a pod may begin many
// connections that lead nowhere.
func (d *DNS) connect(kind int, to netip.AddrPort) (f *os.File, err error) {
	addr := to.Addr().Unmap()
	family, sa := unix.AF_INET, unix.Sockaddr(nil)
	if addr.Is4() {
		sa = &unix.SockaddrInet4{Port: int(to.Port()), Addr: addr.As4()}
	} else {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(to.Port()), Addr: addr.As16()}
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.fd < 0 {
		return nil, net.ErrClosed
	}
	fd := -1
	err = inNetns(d.fd, func() (err error) {
		fd, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("opening a socket in the pod: %w", err)
	}
	f = os.NewFile(uintptr(fd), "pod")
	if err := unix.Connect(fd, sa); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		f.Close()
		return nil, fmt.Errorf("connecting to %v from within the pod: %w", to, err)
	}
	return f, nil
}

// awaitConnected waits until the connection has been made, or has failed.
func awaitConnected(ctx context.Context, f *os.File) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	var failed error
	err = c.Write(func(fd uintptr) bool {
		errno, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		switch {
		case err != nil:
			failed = err
		case errno != 0:
			failed = unix.Errno(errno)
		default:
			_, err := unix.Getpeername(int(fd))
			if errors.Is(err, unix.ENOTCONN) {
				return false
			}
			failed = err
		}
		return true
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(err, failed)
}

// netnsJob is a job for a thread inside the netns.
type netnsJob struct {
	fd   int
	do   func() error
	done chan<- error
}

var netnsJobs = make(chan netnsJob)

// netnsThreads has one element per thread. A program has 10000 at most (runtime/debug,
// SetMaxThreads) and ends beyond that; pods may ask any number of things at once.
var netnsThreads = make(chan struct{}, 8)

// idleThread is how long a thread waits for its next job.
const idleThread = 10 * time.Second

// inNetns calls do on a thread inside the netns. The threads are shared by all pods
// and used for nothing else; do must not wait.
func inNetns(fd int, do func() error) error {
	done := make(chan error, 1)
	job := netnsJob{fd, do, done}
	select {
	case netnsJobs <- job:
		return <-done
	default:
	}
	select {
	case netnsJobs <- job:
	case netnsThreads <- struct{}{}:
		go onSpareThread(func() {
			defer func() { <-netnsThreads }()
			serveNetns(job)
		})
	}
	return <-done
}

// serveNetns does jobs, one by one, until there are none for a while. It leaves each
// netns at once: a thread would keep it alive.
func serveNetns(job netnsJob) {
	home, err := netns.Get()
	if err != nil {
		job.done <- fmt.Errorf("opening our own netns: %w", err)
		return
	}
	defer home.Close()
	idle := time.NewTimer(idleThread)
	defer idle.Stop()
	for {
		if err := unix.Setns(job.fd, unix.CLONE_NEWNET); err != nil {
			job.done <- fmt.Errorf("entering the pod's netns: %w", err)
			return
		}
		err := job.do()
		back := unix.Setns(int(home), unix.CLONE_NEWNET)
		job.done <- err
		if back != nil {
			return
		}
		idle.Reset(idleThread)
		select {
		case job = <-netnsJobs:
		case <-idle.C:
			return
		}
	}
}
