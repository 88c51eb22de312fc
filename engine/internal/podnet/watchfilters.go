// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// netconfGroups announce changes of forwarding: RTNLGRP_IPV4_NETCONF and
// RTNLGRP_IPV6_NETCONF (linux/rtnetlink.h).
var netconfGroups = []int{unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF}

// HearFilters has the watch also hear of changes of pods' nftables and of forwarding in
// them, from the first call on and until done is closed. It costs a second socket, and
// the kernel a message for each transaction of nftables in any netns.
func (w *Watch) HearFilters(done <-chan struct{}, failed func(error)) error {
	if w.filters.Swap(true) {
		return nil
	}
	if err := w.openFilters(); err != nil {
		w.filters.Store(false)
		return fmt.Errorf("watching the pods' nftables: %w", err)
	}
	err := w.events.Load().join(netconfGroups)
	go w.run(done, failed, w.filterHandler())
	return err
}

func (w *Watch) filterHandler() eventHandler {
	return eventHandler{w.filterEvents.Load, w.openFilters, w.hearFilters, Change{kind: changedFilters}}
}

func (w *Watch) openFilters() error {
	sock, err := openEventSocket(unix.NETLINK_NETFILTER, []int{unix.NFNLGRP_NFTABLES})
	if err != nil {
		return err
	}
	if err := sock.hearGenerations(); err != nil {
		sock.file.Close()
		return err
	}
	w.filterEvents.Store(sock)
	return nil
}

// generation is the type of a message of the next generation, with which each
// transaction ends.
const generation = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN

// hearGenerations has the socket drop all other messages. The kernel sends one for each
// rule that changes, and kube-proxy has tens of thousands.
func (e *eventSocket) hearGenerations() (err error) {
	const kindOffset = 4 // in struct nlmsghdr
	// A load is in network byte order, the header in the machine's.
	kind := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, generation))
	code := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: kindOffset},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(kind), Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	cerr := e.conn.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]})
	})
	if err := errors.Join(cerr, err); err != nil {
		return fmt.Errorf("filtering the socket's messages: %w", err)
	}
	return nil
}

func (e *eventSocket) join(groups []int) (err error) {
	cerr := e.conn.Control(func(fd uintptr) {
		for _, group := range groups {
			if err == nil {
				err = unix.SetsockoptInt(int(fd), unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group)
			}
		}
	})
	if cerr != nil {
		return cerr // another socket is being opened, with these groups
	}
	return err
}

// hearFilters passes on that a pod's nftables have changed.
func (w *Watch) hearFilters(nsid int32, raw []byte) {
	for len(raw) >= unix.NLMSG_HDRLEN {
		size := binary.NativeEndian.Uint32(raw)
		if size < unix.NLMSG_HDRLEN || int(size) > len(raw) {
			return
		}
		if binary.NativeEndian.Uint16(raw[4:]) == generation {
			w.filtersChanged(nsid)
		}
		raw = raw[min(len(raw), int(size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
	}
}

func (w *Watch) filtersChanged(nsid int32) {
	w.mu.Lock()
	entry := w.pods[nsid]
	w.mu.Unlock()
	if entry != nil {
		entry.changed(Change{kind: changedFilters})
	}
}
