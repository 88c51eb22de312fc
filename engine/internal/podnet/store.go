// SPDX-License-Identifier: BSD-3-Clause

package podnet

import "golang.org/x/sys/unix"

// SocketStore keeps links' packet sockets open while this process is away, as systemd's
// file descriptor store does. What a pod sends meanwhile waits in them. A process also
// ends faster with it: for each packet socket that it closes, the kernel waits for an RCU
// grace period (packet_release, synchronize_net), 14 ms as measured, one after the other.
//
// A store that keeps nothing is a store too. Its methods do not fail: a socket that is
// not kept is opened again.
type SocketStore interface {
	// Take returns the socket that an earlier process kept under a name. It belongs to
	// the caller from then on, and can be taken once.
	Take(name string) (fd int, ok bool)
	// Keep keeps a duplicate of the socket under a name, in place of an earlier one.
	Keep(name string, fd int)
	// Drop forgets the socket that is kept under a name.
	Drop(name string)
	// Retain drops all sockets except those that are kept under these names.
	Retain(names []string)
}

// NoStore keeps nothing.
type NoStore struct{}

// Take implements [SocketStore].
func (NoStore) Take(string) (int, bool) { return -1, false }

// Keep implements [SocketStore].
func (NoStore) Keep(string, int) {}

// Drop implements [SocketStore].
func (NoStore) Drop(string) {}

// Retain implements [SocketStore].
func (NoStore) Retain([]string) {}

// socket returns the link's packet socket, and sees to it that it is kept.
func (l *Link) socket(store SocketStore) (fd int, err error) {
	fd, ok := store.Take(l.Host)
	if ok && boundTo(fd, l.hostIndex) {
		return fd, nil
	}
	if ok { // it belongs to an earlier link of that name
		unix.Close(fd)
	}
	if fd, err = openPacketSocket(l.hostIndex); err == nil {
		store.Keep(l.Host, fd)
	}
	return fd, err
}

// boundTo reports whether the packet socket is bound to the interface.
func boundTo(fd, ifindex int) bool {
	addr, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	ll, ok := addr.(*unix.SockaddrLinklayer)
	return ok && ll.Ifindex == ifindex && ll.Protocol == bigEndian16(unix.ETH_P_ALL)
}
