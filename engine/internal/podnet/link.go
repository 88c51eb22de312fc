// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"bytes"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// PodLink is the name of the link's end inside the pod.
	PodLink = "ts0"

	// MTU of the link, in bytes. It is Tailscale's own, and exact: a packet that is one
	// byte longer does not fit into WireGuard's.
	MTU = 1280

	// hostPrefix begins the names of the host ends. Programs that watch or configure a
	// host's interfaces mostly leave out those that begin with veth. CNI plugins go on
	// with a hexadecimal digit there, which t is not.
	hostPrefix = "vetht"

	// earlierPrefix is the prefix of earlier versions.
	earlierPrefix = "ts"
)

// HostLink returns the name of the host end of a sandbox's link. It is
// derived from the sandbox's ID, so that a link of that name is ours.
func HostLink(sandboxID string) string { return hostLink(hostPrefix, sandboxID) }

func hostLink(prefix, sandboxID string) string {
	name := prefix + sandboxID
	return name[:min(len(name), unix.IFNAMSIZ-1)]
}

// IsHostLink reports whether the host end of a sandbox's link has that name, or
// had it in an earlier version of this program.
func IsHostLink(name, sandboxID string) bool {
	return name == HostLink(sandboxID) || name == hostLink(earlierPrefix, sandboxID)
}

// Link is the veth pair between a pod and this process.
type Link struct {
	NS   Namespace
	Host string // name of the host end

	hostIndex int
	podIndex  int
	nsid      int // of the pod's netns, as seen from here
	hostMAC   net.HardwareAddr
	podMAC    net.HardwareAddr
	missing   []string // what the last ensure has added
}

// Ensure returns the link between the pod's netns and the host end named host, with ts0
// up and without addresses. It creates what is missing and takes over what is there, so
// it can be repeated at any time. It sends the kernel a handful of messages, of which that
// for a new filter may wait: see [AwaitGracePeriod].
//
// It returns an error that wraps [ErrGone] if the netns is gone, and one that
// names the remedy if the pod has a ts0 that is not ours.
//
// found is called with the link before it is isolated, so that no change of what
// isolates it is missed; nil is not.
func Ensure(ns Namespace, host string, found func(*Link)) (*Link, error) {
	return ensure(ns, host, found, false)
}

// Begin is Ensure for a pod that has no program yet. It leaves to Ensure what has all
// interfaces wait for a grace period of RCU, see [AwaitGracePeriod]. Ensure is to come
// before the first program of the pod. Until then the host end is down, and nothing of
// the host passes it. A link that is there already is completed, as Ensure does.
func Begin(ns Namespace, host string, found func(*Link)) (*Link, error) {
	return ensure(ns, host, found, true)
}

func ensure(ns Namespace, host string, found func(*Link), begin bool) (*Link, error) {
	l := &Link{NS: ns, Host: host}
	err := l.withSockets(func(s sockets) error {
		// Most pods are new. Where a name is taken the kernel changes nothing.
		p, err := l.createPair(s)
		if errors.Is(err, unix.EEXIST) {
			p, err = l.takeOver(s)
			begin = false
		}
		if err != nil {
			return err
		}
		l.take(p)
		if found != nil {
			found(l)
		}
		setUpHostEnd := l.setUpHostEnd
		if begin {
			setUpHostEnd = l.beginHostEnd
		}
		if err := l.setUp(s, p, setUpHostEnd); err != nil {
			return err
		}
		return l.nameHostEnd(p.host)
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// sockets are the sockets that make a link.
type sockets struct {
	pod, host rtnl
}

// withSockets calls fn with sockets in the pod's netns and in this process's.
func (l *Link) withSockets(fn func(sockets) error) error {
	pod, err := l.NS.dial()
	if err != nil {
		return err
	}
	defer pod.Close()
	host, err := openRtnl(netns.None())
	if err != nil {
		return fmt.Errorf("opening netlink: %w", err)
	}
	defer host.Close()
	return fn(sockets{pod, host})
}

// pair are the two ends of a link.
type pair struct {
	ts0, host netlink.Link
}

// createPair creates both ends from within the pod: ts0 never appears in the
// host's netns, where daemons that watch links would see it.
func (l *Link) createPair(s sockets) (p pair, err error) {
	here, err := netns.Get()
	if err != nil {
		return pair{}, fmt.Errorf("opening our own netns: %w", err)
	}
	defer here.Close()
	answers, err := s.pod.do(newPair(l.Host, here), getLink(PodLink))
	if err != nil {
		return pair{}, err
	}
	if err := answers[0].err; err != nil {
		return pair{}, fmt.Errorf("creating %s and %s: %w", PodLink, l.Host, err)
	}
	if p.ts0, err = answers[1].link(); err != nil {
		return pair{}, fmt.Errorf("looking up %s: %w", PodLink, goneIfNotFound(err))
	}
	if p.host, err = linkByName(s.host.byName, l.Host); err != nil {
		return pair{}, err
	}
	// A pod that may change its netns could have put another interface in ts0's place.
	if p.host == nil || !arePair(p.ts0, p.host) {
		return pair{}, fmt.Errorf("%s or %s was removed or replaced as soon as it was there", PodLink, l.Host)
	}
	return p, nil
}

// newPair asks for a veth pair of ts0, in the netns of the socket, and the host end, in
// the netns here.
func newPair(host string, here netns.NsHandle) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(here)))
	for _, end := range []struct {
		name string
		add  func(kind int, value []byte)
	}{
		{host, func(kind int, value []byte) { peer.AddRtAttr(kind, value) }},
		{PodLink, func(kind int, value []byte) { req.AddData(nl.NewRtAttr(kind, value)) }},
	} {
		add := end.add
		add(unix.IFLA_IFNAME, nl.ZeroTerminated(end.name))
		add(unix.IFLA_MTU, nl.Uint32Attr(MTU))
		// A veth uses one queue in either direction. By default the kernel makes one for
		// each processor. Then it takes the others back, and waits for an RCU grace period
		// at each end while it holds the lock of all interfaces (veth_init_queues).
		add(unix.IFLA_NUM_TX_QUEUES, nl.Uint32Attr(1))
		add(unix.IFLA_NUM_RX_QUEUES, nl.Uint32Attr(1))
	}
	// A burst bigger than the engine's batch could not be split in one go.
	req.AddData(nl.NewRtAttr(unix.IFLA_GSO_MAX_SEGS, nl.Uint32Attr(batchSize)))
	req.AddData(info)
	return req
}

// takeOver returns a pair that is there, and creates the pair where only one of its
// names was taken.
func (l *Link) takeOver(s sockets) (p pair, err error) {
	if p.ts0, err = linkByName(s.pod.byName, PodLink); err != nil {
		return pair{}, err
	}
	if p.host, err = linkByName(s.host.byName, l.Host); err != nil {
		return pair{}, err
	}
	if p.host != nil && p.host.Type() != "veth" {
		return pair{}, fmt.Errorf("interface %s is a %s, not a veth of ours: rename it", l.Host, p.host.Type())
	}
	switch {
	case p.ts0 != nil && p.host != nil && arePair(p.ts0, p.host):
		return p, nil
	case p.ts0 != nil:
		if p.host == nil {
			p.host = l.renamed(p.ts0)
			if p.host != nil {
				return p, nil
			}
		}
		return pair{}, fmt.Errorf("the pod has an interface %s that is not ours (%s, index %d): remove or rename it",
			PodLink, p.ts0.Type(), p.ts0.Attrs().Index)
	case p.host != nil:
		// The name is ours and its pod end is not here: the link belongs to a sandbox
		// whose netns is about to go.
		if err := netlink.LinkDel(p.host); err != nil && !isNotFound(err) {
			return pair{}, fmt.Errorf("deleting the stale %s: %w", l.Host, err)
		}
	}
	return l.createPair(s)
}

// setUp gives an existing pair its settings, those of the host end first.
func (l *Link) setUp(s sockets, p pair, setUpHostEnd func(rtnl, netlink.Link) error) error {
	if err := setUpHostEnd(s.host, p.host); err != nil {
		return fmt.Errorf("setting up the host's end %s: %w", l.Host, goneIfNotFound(err))
	}
	if err := setOffloads(s.pod.GetFd()); err != nil {
		return fmt.Errorf("setting offloads of %s: %w", PodLink, err)
	}
	if err := l.setUpPodEnd(s.pod, p.ts0); err != nil {
		return fmt.Errorf("setting up the pod's end %s: %w", PodLink, goneIfNotFound(err))
	}
	return nil
}

// Is reports whether both are the same pair.
func (l *Link) Is(other *Link) bool {
	return l.NS.Ino == other.NS.Ino && l.hostIndex == other.hostIndex && l.podIndex == other.podIndex
}

// take notes what the kernel calls both ends, as the host end says. From then on others
// read it.
func (l *Link) take(p pair) {
	a := p.host.Attrs()
	l.hostIndex, l.podIndex, l.nsid, l.hostMAC = a.Index, a.ParentIndex, a.NetNsID, bytes.Clone(a.HardwareAddr)
	l.podMAC = bytes.Clone(p.ts0.Attrs().HardwareAddr)
}

// setUpHostEnd isolates the host end from everything except our packet socket: no ARP,
// no IPv6 address of its own, and the drop filters.
func (l *Link) setUpHostEnd(s rtnl, host netlink.Link) error {
	built, err := isolateHostEnd(s, l.hostIndex, true)
	if err != nil {
		return err
	}
	if built {
		l.missing = append(l.missing, "tc drop filters of "+l.Host)
	}
	l.note(host.Attrs(), l.Host)
	return raise(s, host)
}

// beginHostEnd is setUpHostEnd without the drop filter. The host end stays down.
func (l *Link) beginHostEnd(s rtnl, _ netlink.Link) error {
	if _, err := isolateHostEnd(s, l.hostIndex, false); err != nil {
		return err
	}
	return setSilent(s, l.hostIndex, unix.IFF_NOARP) // somebody else may raise it
}

func (l *Link) setUpPodEnd(s rtnl, ts0 netlink.Link) error {
	if err := l.resetPodEnd(s, ts0); err != nil {
		return err
	}
	// NOARP: no neighbour table and no duplicate address detection. Frames carry ts0's
	// own address as their destination, which the host's stack takes for another
	// machine's.
	return raise(s, ts0)
}

// raise sets a link up, without ARP and without an IPv6 address that the kernel makes.
func raise(s rtnl, link netlink.Link) error {
	if isRaised(link) {
		return nil
	}
	return setSilent(s, link.Attrs().Index, fineFlags)
}

// setSilent keeps the kernel from making an IPv6 address of the link's and then sets
// flags of it, of which one is that it has no ARP.
func setSilent(s rtnl, index int, flags uint32) error {
	answers, err := s.do(setAddrGenModeNone(index), setFlags(index, flags, flags))
	switch {
	case err != nil:
		return err
	case answers[0].err != nil && !isIPv6Off(answers[0].err):
		err := fmt.Errorf("setting the IPv6 address generation mode: %w", answers[0].err)
		return errors.Join(err, s.all(setFlags(index, 0, unix.IFF_UP)))
	case answers[1].err != nil:
		return fmt.Errorf("bringing it up without ARP: %w", answers[1].err)
	}
	return nil
}

// isRaised reports whether the link is up with all its flags, so that nothing has to be
// changed. Setting the address generation mode is announced to all listeners, even if
// nothing changes. After a restart each backend would then list the host's interfaces
// for each link of all the others. The mode is set before the link is raised.
func isRaised(link netlink.Link) bool { return link.Attrs().RawFlags&fineFlags == fineFlags }

// setAddrGenModeNone keeps the kernel from giving the link a link-local address. A netns
// or a kernel without IPv6 does not need it and refuses it.
func setAddrGenModeNone(index int) *nl.NetlinkRequest {
	const in6AddrGenModeNone = 1 // IN6_ADDR_GEN_MODE_NONE, linux/if_link.h
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, nl.Uint8Attr(in6AddrGenModeNone))
	return setLink(index, spec)
}

// Exists reports whether the link's host end is there, and with it, since a
// veth has two ends or none, the one in the pod.
func Exists(host string) (bool, error) {
	link, err := linkByName(netlink.LinkByName, host)
	return link != nil, err
}

// Remove deletes the link. A link that is gone already is success.
func Remove(host string) error {
	link, err := linkByName(netlink.LinkByName, host)
	if err != nil || link == nil {
		return err
	}
	if err := netlink.LinkDel(link); err != nil && !isNotFound(err) {
		return fmt.Errorf("deleting %s: %w", host, err)
	}
	return nil
}

// linkByName returns nil if the link does not exist.
func linkByName(find func(string) (netlink.Link, error), name string) (netlink.Link, error) {
	link, err := find(name)
	switch {
	case isNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("looking up %s: %w", name, err)
	}
	return link, nil
}

// arePair reports whether a and b, seen in two namespaces, are each other's
// peers (IFLA_LINK).
func arePair(a, b netlink.Link) bool {
	return a.Type() == "veth" && b.Type() == "veth" &&
		a.Attrs().ParentIndex == b.Attrs().Index && b.Attrs().ParentIndex == a.Attrs().Index
}

func isNotFound(err error) bool {
	return errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO)
}

// goneIfNotFound turns "no such link" into [ErrGone]: a link of ours goes
// only with its pod.
func goneIfNotFound(err error) error {
	if isNotFound(err) {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return err
}

// isIPv6Off reports whether err means that IPv6 is switched off: EACCES and EPERM for
// disable_ipv6=1 (net/ipv6/addrconf.c), the others for a kernel started with
// ipv6.disable=1.
func isIPv6Off(err error) bool {
	for _, errno := range []error{unix.EACCES, unix.EPERM, unix.EOPNOTSUPP, unix.EAFNOSUPPORT} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
