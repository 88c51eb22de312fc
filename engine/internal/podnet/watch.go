// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Watch hears of changes of links, at both of their ends, with one socket for all. A
// netlink socket in this netns can listen to every netns that has an ID here
// (NETLINK_LISTEN_ALL_NSID, netlink(7)), as the netns of a veth's peer has. It holds no
// descriptor of a pod's netns, and costs nothing while nothing happens.
type Watch struct {
	mu     sync.Mutex
	links  map[string]*watched // by name of the host end
	hosts  map[int32]*watched  // by index of the host end
	pods   map[int32]*watched  // by ID of the pod's netns
	fd     int                 // for ioctls
	events atomic.Pointer[eventSocket]

	filters      atomic.Bool // HearFilters has been called
	filterEvents atomic.Pointer[eventSocket]
}

type watched struct {
	link    *Link
	changed func(Change)
}

// watchBuffer is the size in bytes asked for the socket. If it overflows, all links are
// checked.
const watchBuffer = 4 << 20

// OpenWatch opens the socket, which needs CAP_NET_BROADCAST. Nothing is heard before
// [Watch.Run].
func OpenWatch() (*Watch, error) {
	w := &Watch{links: map[string]*watched{}, hosts: map[int32]*watched{}, pods: map[int32]*watched{}}
	if err := w.open(); err != nil {
		return nil, fmt.Errorf("watching the pods' links: %w", err)
	}
	var err error
	if w.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		w.events.Load().file.Close()
		return nil, fmt.Errorf("opening a socket: %w", err)
	}
	return w, nil
}

func (w *Watch) open() (err error) {
	groups := []int{
		unix.RTNLGRP_LINK, unix.RTNLGRP_TC, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
	}
	if w.filters.Load() {
		groups = append(groups, netconfGroups...)
	}
	sock, err := openEventSocket(unix.NETLINK_ROUTE, groups)
	if err == nil {
		w.events.Store(sock)
	}
	return err
}

// eventSocket is a socket that hears of all pods.
type eventSocket struct {
	file *os.File
	conn syscall.RawConn
}

func openEventSocket(protocol int, groups []int) (*eventSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "netlink:all")
	if err := subscribe(fd, groups); err != nil {
		file.Close()
		return nil, err
	}
	conn, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &eventSocket{file, conn}, nil
}

func subscribe(fd int, groups []int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_LISTEN_ALL_NSID, 1); err != nil {
		return fmt.Errorf("listening to all namespaces (NETLINK_LISTEN_ALL_NSID, CAP_NET_BROADCAST): %w", err)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, watchBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, watchBuffer)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("binding: %w", err)
	}
	for _, group := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
			return fmt.Errorf("joining group %d: %w", group, err)
		}
	}
	return nil
}

// Run calls the links' functions until done is closed. When the socket is lost, it
// calls failed and opens another.
func (w *Watch) Run(done <-chan struct{}, failed func(error)) {
	defer unix.Close(w.fd)
	w.run(done, failed, eventHandler{w.events.Load, w.open, w.hear, Change{kind: changedUnseen}})
}

// eventHandler is what run does with a socket and with what it hears.
type eventHandler struct {
	current func() *eventSocket
	open    func() error // opens another socket
	hear    func(nsid int32, raw []byte)
	lost    Change // the change to assume after a loss
}

// run hears until done is closed.
func (w *Watch) run(done <-chan struct{}, failed func(error), h eventHandler) {
	for {
		over, sock := make(chan struct{}), h.current()
		go func() {
			select {
			case <-done:
			case <-over:
			}
			sock.file.Close()
		}()
		err := w.listen(sock, h)
		close(over)
		select {
		case <-done:
			return
		default:
			failed(err)
		}
		for h.open() != nil {
			select {
			case <-done:
				return
			case <-time.After(listenAgain):
			}
		}
		w.lookAtAll(h.lost)
	}
}

// listenAgain is the pause before a lost subscription is created again: the kernel
// ends one that does not keep up (ENOBUFS, netlink(7)).
const listenAgain = time.Second

// Add has changed called for each change of the link that may matter, until
// Remove or the next Add with the same name of its host end. The function must
// not wait.
func (w *Watch) Add(l *Link, changed func(Change)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.removeLocked(l.Host)
	seen := *l // Restore writes to l
	entry := &watched{&seen, changed}
	w.links[l.Host], w.hosts[int32(l.hostIndex)], w.pods[int32(l.nsid)] = entry, entry, entry
}

// Remove ends what Add began.
func (w *Watch) Remove(host string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.removeLocked(host)
}

func (w *Watch) removeLocked(host string) {
	entry := w.links[host]
	if entry == nil {
		return
	}
	delete(w.links, host)
	// Another link may have the numbers by now.
	if i := int32(entry.link.hostIndex); w.hosts[i] == entry {
		delete(w.hosts, i)
	}
	if id := int32(entry.link.nsid); w.pods[id] == entry {
		delete(w.pods, id)
	}
}

func (w *Watch) lookAtAll(c Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, entry := range w.links {
		entry.changed(c)
	}
}

// listen hands messages to hear until the socket fails or is closed.
func (w *Watch) listen(sock *eventSocket, h eventHandler) error {
	buf, oob := make([]byte, 64<<10), make([]byte, 64)
	for {
		var n, oobn int
		var err error
		cerr := sock.conn.Read(func(fd uintptr) bool {
			n, oobn, _, _, err = unix.Recvmsg(int(fd), buf, oob, 0)
			return !errors.Is(err, unix.EAGAIN)
		})
		switch {
		case cerr != nil:
			return cerr
		case errors.Is(err, unix.ENOBUFS):
			w.lookAtAll(h.lost)
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		default:
			h.hear(nsidOf(oob[:oobn]), buf[:n])
		}
	}
}

// thisNetns stands for the ID in messages of the socket's own netns.
const thisNetns = -1

// nsidOf returns the ID of the netns that a message is from.
func nsidOf(oob []byte) int32 {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return thisNetns
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_NETLINK && m.Header.Type == unix.NETLINK_LISTEN_ALL_NSID && len(m.Data) >= 4 {
			return int32(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return thisNetns
}

// hear passes on what the messages say of our links.
func (w *Watch) hear(nsid int32, raw []byte) {
	for len(raw) >= unix.NLMSG_HDRLEN {
		size := binary.NativeEndian.Uint32(raw)
		if size < unix.NLMSG_HDRLEN || int(size) > len(raw) {
			return
		}
		kind := binary.NativeEndian.Uint16(raw[4:])
		w.message(nsid, kind, raw[unix.NLMSG_HDRLEN:size])
		raw = raw[min(len(raw), int(size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
	}
}

func (w *Watch) message(nsid int32, kind uint16, body []byte) {
	if len(body) < unix.SizeofRtMsg {
		return
	}
	w.mu.Lock()
	entry := w.pods[nsid]
	if nsid == thisNetns {
		entry = w.hosts[int32(binary.NativeEndian.Uint32(body[4:]))] // the index in a link's or a filter's message
	}
	w.mu.Unlock()
	if entry == nil {
		return
	}
	var c Change
	if nsid == thisNetns {
		c = hostChange(entry.link, kind, body)
	} else {
		c = podChange(entry.link, kind, body)
	}
	switch {
	case c.kind == changedNothing:
	case c.kind == changedHostEnd && entry.link.looksFine(w.fd):
		// It was made, or was down for a moment, which the socket survives.
	default:
		entry.changed(c)
	}
}

// hostChange returns what a message of this netns says of a link's host end.
func hostChange(l *Link, kind uint16, body []byte) Change {
	switch kind {
	case unix.RTM_DELQDISC, unix.RTM_DELTFILTER:
		return Change{kind: changedDropFilters}
	case unix.RTM_NEWLINK:
		if a := parseLink(body); !a.fine() || a.name != l.Host {
			return Change{kind: changedHostEnd}
		}
	}
	return Change{}
}

// podChange returns what a message of the pod's netns says of ts0.
func podChange(l *Link, kind uint16, body []byte) Change {
	index := binary.NativeEndian.Uint32(body[4:])
	switch kind {
	case unix.RTM_NEWLINK:
		a := parseLink(body)
		if int(index) == l.podIndex && (!a.fine() || a.mtu != MTU || a.name != PodLink || a.mac != l.podMAC.String()) {
			return Change{kind: changedPodEnd}
		}
	case unix.RTM_DELADDR:
		if int(index) == l.podIndex {
			return Change{kind: changedAddr, addr: addrAttr(body[unix.SizeofIfAddrmsg:], unix.IFA_LOCAL, unix.IFA_ADDRESS)}
		}
	case unix.RTM_DELRULE:
		if v := attr(body[unix.SizeofRtMsg:], nl.FRA_PROTOCOL); len(v) == 1 && v[0] == routeProtocol {
			return Change{kind: changedRules}
		}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return routeChange(kind, body)
	case unix.RTM_NEWNETCONF:
		return Change{kind: changedFilters}
	}
	return Change{}
}

func routeChange(kind uint16, body []byte) Change {
	family, bits, table, proto, rtype := body[0], int(body[1]), int(body[4]), body[5], body[7]
	attrs := body[unix.SizeofRtMsg:]
	if v := attr(attrs, unix.RTA_TABLE); len(v) == 4 {
		table = int(binary.NativeEndian.Uint32(v))
	}
	if kind == unix.RTM_NEWROUTE && family == unix.AF_INET6 && rtype == unix.RTN_MULTICAST {
		return Change{kind: changedIPv6}
	}
	ours := proto == routeProtocol && kind == unix.RTM_DELROUTE
	if !ours && (proto == routeProtocol || table != unix.RT_TABLE_MAIN) {
		return Change{}
	}
	dst := netip.PrefixFrom(addrAttr(attrs, unix.RTA_DST), bits)
	if bits == 0 && ours {
		dst = defaultOf(family) // the kernel names no destination for it
	}
	if !dst.IsValid() {
		return Change{}
	}
	if ours {
		return Change{kind: changedRoute, key: routeKey{table, dst, rtype == unix.RTN_UNREACHABLE}}
	}
	return Change{kind: changedForeign, key: routeKey{table: table, dst: dst}}
}
