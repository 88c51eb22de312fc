// SPDX-License-Identifier: BSD-3-Clause

package supervisor

import (
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/engine"
)

// FDStore is a pair of connected sockets that the supervisor opens and each
// child inherits, both ends. What a child sends into one end lies there, the
// descriptors with it, until it is received from the other: it outlives the child
// without anything else.
type FDStore struct {
	in, out int // descriptors
}

// Messages in the store: a name, and a descriptor with it.
const (
	maxSocketName = 64
	storeSize     = 8 << 20 // bytes; a message takes up less than 2 KiB
)

func newFDStore() (FDStore, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return FDStore{}, fmt.Errorf("making a place for sockets that outlive the serving process: %w", err)
	}
	// Without CAP_NET_ADMIN it holds fewer.
	_ = unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, storeSize)
	return FDStore{in: pair[0], out: pair[1]}, nil
}

func (s FDStore) put(name string, fd int) error {
	return unix.Sendmsg(s.in, []byte(name), unix.UnixRights(fd), nil, 0)
}

// get takes the message that has lain there for longest. It returns false if
// there is none.
func (s FDStore) get() (name string, fd int, ok bool) {
	text, rights := make([]byte, maxSocketName), make([]byte, unix.CmsgSpace(4))
	n, rightsLen, _, _, err := unix.Recvmsg(s.out, text, rights, unix.MSG_CMSG_CLOEXEC)
	if err != nil || n == 0 {
		return "", -1, false
	}
	fd = -1
	if m, err := unix.ParseSocketControlMessage(rights[:rightsLen]); err == nil && len(m) == 1 {
		if fds, err := unix.ParseUnixRights(&m[0]); err == nil && len(fds) == 1 {
			fd = fds[0]
		}
	}
	return string(text[:n]), fd, true
}

// SocketStore keeps the links' sockets in the supervisor's descriptor store. What cannot
// be kept is opened again by the next process.
type SocketStore struct {
	mu    sync.Mutex
	place FDStore
	names []string       // in the store
	found map[string]int // descriptors that an earlier child put there, not yet taken
}

var _ engine.SocketStore = (*SocketStore)(nil)

// OpenSockets finds what is in the store. All of it stays there.
func OpenSockets(s FDStore) *SocketStore {
	st := &SocketStore{place: s, found: map[string]int{}}
	// The store is turned over as in drop, with a message of its own for the end. If
	// there is no room for that one, there is none for any.
	end := fmt.Sprintf("end of round %d", time.Now().UnixNano())
	room := unix.Sendmsg(s.in, []byte(end), nil, nil, 0) == nil
	for {
		name, fd, ok := s.get()
		if !ok || name == end {
			return st
		}
		if fd < 0 {
			continue
		}
		if twice, ok := st.found[name]; ok {
			closeLater(twice)
		}
		st.found[name] = fd
		if room {
			st.put(name, fd)
		}
	}
}

// put needs the lock.
func (st *SocketStore) put(name string, fd int) {
	if st.place.put(name, fd) == nil {
		st.names = append(st.names, name)
	}
}

// Take implements [engine.SocketStore].
func (st *SocketStore) Take(name string) (fd int, ok bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.take(name)
}

func (st *SocketStore) take(name string) (fd int, ok bool) {
	fd, ok = st.found[name]
	delete(st.found, name)
	return fd, ok
}

// Keep implements [engine.SocketStore].
func (st *SocketStore) Keep(name string, fd int) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.drop(name)
	st.put(name, fd)
}

// Drop implements [engine.SocketStore].
func (st *SocketStore) Drop(name string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.drop(name)
}

// Retain implements [engine.SocketStore].
func (st *SocketStore) Retain(names []string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, name := range slices.Clone(st.names) {
		if !slices.Contains(names, name) {
			st.drop(name)
		}
	}
}

// drop turns the whole store over, one message at a time: a child that dies
// over it loses one socket at most. It needs the lock.
func (st *SocketStore) drop(name string) {
	if fd, ok := st.take(name); ok {
		closeLater(fd)
	}
	if !slices.Contains(st.names, name) {
		return
	}
	kept := st.names
	st.names = nil
	for range kept {
		is, fd, ok := st.place.get()
		if !ok {
			return
		}
		if is == name {
			closeLater(fd)
			continue
		}
		st.put(is, fd)
		syscall.Close(fd)
	}
}

// Clear empties the store, at a planned end: this program is not started again,
// and the supervisor would close one socket after the other.
func (st *SocketStore) Clear() {
	st.mu.Lock()
	defer st.mu.Unlock()
	var closing sync.WaitGroup
	for _, fd := range st.found {
		closing.Go(func() { syscall.Close(fd) })
	}
	for {
		_, fd, ok := st.place.get()
		if !ok {
			break
		}
		closing.Go(func() { syscall.Close(fd) })
	}
	closing.Wait()
	st.names, st.found = nil, map[string]int{}
}

// closeLater closes a descriptor that may be its socket's last, which takes a
// while (see engine.SocketStore).
func closeLater(fd int) {
	go syscall.Close(fd)
}
