// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Change is a change of a link, by others or by this process.
type Change struct {
	kind changeKind
	key  routeKey   // of a changed route
	addr netip.Addr // a deleted address
}

type changeKind int

const (
	changedNothing changeKind = iota
	changedUnseen             // messages were lost
	changedDropFilters
	changedHostEnd
	changedPodEnd
	changedAddr
	changedRoute   // a route of ours was deleted
	changedForeign // a route of the pod's own changed
	changedRules
	changedIPv6    // IPv6 is on, perhaps again
	changedFilters // nftables, or forwarding
)

// OfIsolation reports whether the change may have opened a way between the pod and the
// host's stack.
func (c Change) OfIsolation() bool { return c.kind == changedUnseen || c.kind == changedDropFilters }

// MayAffect reports whether the change may have removed something that the router has put
// into the pod. A nil router has put nothing there.
func (r *Router) MayAffect(c Change) bool {
	var s *installed
	if r != nil {
		s = r.wanted.Load()
	}
	switch c.kind {
	case changedUnseen, changedDropFilters, changedHostEnd:
		return true
	case changedPodEnd:
		return s != nil
	case changedFilters:
		return r != nil && (r.exit != nil || r.fwd != nil)
	}
	if s == nil {
		return false
	}
	switch c.kind {
	case changedAddr:
		return slices.ContainsFunc(s.addrs, func(p netip.Prefix) bool { return p.Addr() == c.addr })
	case changedRoute:
		_, wanted := s.routes[c.key]
		return wanted
	case changedForeign:
		return coveredBy(c.key.dst, s.within)
	case changedIPv6:
		return len(s.addrs) < len(s.asked)
	}
	return c.kind == changedRules
}

// linkAttrs are the attributes of a link that Ensure sets.
type linkAttrs struct {
	flags uint32
	mtu   uint32
	name  string
	mac   string
}

const fineFlags = unix.IFF_UP | unix.IFF_NOARP

func (a linkAttrs) fine() bool { return a.flags&fineFlags == fineFlags }

func parseLink(body []byte) (a linkAttrs) {
	if len(body) < unix.SizeofIfInfomsg {
		return a
	}
	a.flags = binary.NativeEndian.Uint32(body[8:])
	attrs := body[unix.SizeofIfInfomsg:]
	a.name = unix.ByteSliceToString(attr(attrs, unix.IFLA_IFNAME))
	a.mac = net.HardwareAddr(attr(attrs, unix.IFLA_ADDRESS)).String()
	if v := attr(attrs, unix.IFLA_MTU); len(v) == 4 {
		a.mtu = binary.NativeEndian.Uint32(v)
	}
	return a
}

// nlaTypeMask is NLA_TYPE_MASK (linux/netlink.h).
const nlaTypeMask = 1<<14 - 1

// attr returns the value of the first attribute of the type, nil if there is
// none.
func attr(attrs []byte, kind uint16) []byte {
	for len(attrs) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(attrs))
		if size < unix.SizeofRtAttr || size > len(attrs) {
			return nil
		}
		if binary.NativeEndian.Uint16(attrs[2:])&nlaTypeMask == kind {
			return attrs[unix.SizeofRtAttr:size]
		}
		attrs = attrs[min(len(attrs), (size+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1)):]
	}
	return nil
}

// addrAttr returns the first of the attributes that is an address.
func addrAttr(attrs []byte, kinds ...uint16) netip.Addr {
	for _, kind := range kinds {
		if a, ok := netip.AddrFromSlice(attr(attrs, kind)); ok {
			return a
		}
	}
	return netip.Addr{}
}

// looksFine asks with one ioctl, which takes none of the kernel's locks, whether
// both ends of the link are up: the host end runs while ts0 is up.
func (l *Link) looksFine(fd int) bool {
	ifr, err := unix.NewIfreq(l.Host)
	if err != nil || unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr) != nil {
		return false
	}
	const want = fineFlags | unix.IFF_RUNNING
	return ifr.Uint16()&want == want
}
