// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Restore undoes changes that were made to the link since Ensure, at either end, and
// returns what it has restored. It returns an error that wraps [ErrGone] if an end is
// gone, and deletes the other: it makes no new link.
func (l *Link) Restore() (missing []string, err error) {
	l.missing = nil
	var found pair
	err = l.NS.withHandle(func(pod *netlink.Handle) (err error) {
		found, err = l.findPair(pod)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = l.withSockets(func(s sockets) error { return l.setUp(s, found, l.setUpHostEnd) })
	if err == nil {
		err = l.nameHostEnd(found.host)
	}
	return l.missing, err
}

// findPair looks for the pair, and gives ts0 its name back. It goes by the host
// end's number. The pod controls what its own end says of its peer, and could name any
// interface of the host.
func (l *Link) findPair(pod *netlink.Handle) (p pair, err error) {
	if p.host, err = netlink.LinkByIndex(l.hostIndex); err != nil {
		return pair{}, goneIfNotFound(err)
	}
	p.ts0, err = pod.LinkByIndex(l.podIndex)
	switch {
	case err != nil && !isNotFound(err):
		return pair{}, err
	case err != nil, !arePair(p.ts0, p.host), p.host.Attrs().NetNsID != l.nsid:
		return pair{}, l.cutOff(p.host)
	}
	if name := p.ts0.Attrs().Name; name != PodLink {
		if err := rename(pod, p.ts0, PodLink); err != nil {
			return pair{}, err
		}
		l.missing = append(l.missing, PodLink+" was named "+name)
	}
	return p, nil
}

// cutOff deletes the host end of a link whose other end is not in the pod any more,
// since it was moved to another netns for instance. Its socket learns of it.
func (l *Link) cutOff(host netlink.Link) error {
	if host.Type() == "veth" && host.Attrs().Name == l.Host {
		if err := netlink.LinkDel(host); err != nil && !isNotFound(err) {
			return fmt.Errorf("deleting %s, whose other end has left the pod: %w", l.Host, err)
		}
	}
	return fmt.Errorf("%w: the pod's end of %s is not there any more", ErrGone, l.Host)
}

// nameHostEnd gives the host end its name back, if it was changed.
func (l *Link) nameHostEnd(host netlink.Link) error {
	name := host.Attrs().Name
	if name == l.Host {
		return nil
	}
	here, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening netlink: %w", err)
	}
	defer here.Close()
	if err := rename(here, host, l.Host); err != nil {
		return err
	}
	l.missing = append(l.missing, l.Host+" was named "+name)
	return nil
}

// rename renames a link. Before Linux 6.2 it must be down for that.
func rename(h *netlink.Handle, link netlink.Link, name string) error {
	err := h.LinkSetName(link, name)
	if errors.Is(err, unix.EBUSY) {
		err = errors.Join(h.LinkSetDown(link), h.LinkSetName(link, name), h.LinkSetUp(link))
	}
	if err != nil {
		return fmt.Errorf("renaming %s to %s: %w", link.Attrs().Name, name, goneIfNotFound(err))
	}
	return nil
}

// renamed returns ts0's peer if that is in this netns, under another name, and nil
// otherwise. An equal number of an interface does not prove that, since every netns has
// its own numbers. Nor does the peer alone: a pod may rename its CNI's interface to ts0.
func (l *Link) renamed(ts0 netlink.Link) (host netlink.Link) {
	host, err := netlink.LinkByIndex(ts0.Attrs().ParentIndex)
	if err != nil || !arePair(ts0, host) || !isOurs(host) {
		return nil
	}
	ns, err := l.NS.open()
	if err != nil {
		return nil
	}
	defer ns.Close()
	id, err := netlink.GetNetNsIdByFd(int(ns))
	if err != nil || id < 0 || id != host.Attrs().NetNsID {
		return nil
	}
	return host
}

// isOurs reports whether a host end looks as this program makes them. A pod cannot
// change what it goes by, and no CNI's host end is without ARP and of Tailscale's MTU.
func isOurs(host netlink.Link) bool {
	return host.Attrs().RawFlags&unix.IFF_NOARP != 0 && host.Attrs().MTU == MTU
}

// resetPodEnd gives ts0 the MAC address and the MTU that it had.
func (l *Link) resetPodEnd(s rtnl, ts0 netlink.Link) error {
	a := ts0.Attrs()
	l.note(a, PodLink)
	if !bytes.Equal(l.podMAC, a.HardwareAddr) {
		// Our frames carry the address that it had.
		if err := s.all(setLink(a.Index, nl.NewRtAttr(unix.IFLA_ADDRESS, l.podMAC))); err != nil {
			return fmt.Errorf("setting its MAC address: %w", err)
		}
		l.missing = append(l.missing, PodLink+" had another MAC address")
	}
	if a.MTU != MTU {
		if err := s.all(setLink(a.Index, nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(MTU)))); err != nil {
			return fmt.Errorf("setting its MTU: %w", err)
		}
		l.missing = append(l.missing, PodLink+" had another MTU")
	}
	return nil
}

// note notes which of an end's flags are missing.
func (l *Link) note(a *netlink.LinkAttrs, name string) {
	switch {
	case a.RawFlags&unix.IFF_UP == 0:
		l.missing = append(l.missing, name+" was down")
	case a.RawFlags&unix.IFF_NOARP == 0:
		l.missing = append(l.missing, name+" had ARP on")
	}
}
