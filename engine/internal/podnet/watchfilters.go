// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// netconfGroups tell of changes of what forwards: RTNLGRP_IPV4_NETCONF and
// RTNLGRP_IPV6_NETCONF (linux/rtnetlink.h).
var netconfGroups = []int{unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF}

// HearFilters has the watch hear, from the first call on and until done is closed, of
// changes of pods' nftables and of what forwards in them, too. It costs a second socket,
// and the kernel a message for each change of nftables in any netns.
func (w *Watch) HearFilters(done <-chan struct{}, failed func(error)) error {
	if w.filters.Swap(true) {
		return nil
	}
	if err := w.openFilters(); err != nil {
		w.filters.Store(false)
		return fmt.Errorf("watching the pods' nftables: %w", err)
	}
	err := w.ear.Load().join(netconfGroups)
	go w.run(done, failed, w.filterEar.Load, w.openFilters, w.hearFilters)
	return err
}

func (w *Watch) openFilters() error {
	ear, err := openEar(unix.NETLINK_NETFILTER, []int{unix.NFNLGRP_NFTABLES})
	if err == nil {
		w.filterEar.Store(ear)
	}
	return err
}

func (e *ear) join(groups []int) (err error) {
	cerr := e.conn.Control(func(fd uintptr) {
		for _, group := range groups {
			if err == nil {
				err = unix.SetsockoptInt(int(fd), unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group)
			}
		}
	})
	if cerr != nil {
		return cerr // another one is being opened, with these groups
	}
	return err
}

// hearFilters passes on that a pod's nftables have changed: each transaction ends with
// a message of the next generation.
func (w *Watch) hearFilters(nsid int32, raw []byte) {
	const generation = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN
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
