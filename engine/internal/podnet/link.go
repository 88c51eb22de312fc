// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
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

// FindHostLink returns the name of the host end of a sandbox's link. That is the name
// that an earlier version gave it, if such a link exists, since a pod keeps its link
// for as long as it lives; otherwise it is [HostLink].
func FindHostLink(sandboxID string) string {
	earlier := hostLink(earlierPrefix, sandboxID)
	if found, err := Exists(earlier); err == nil && found {
		return earlier
	}
	return HostLink(sandboxID)
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
// it can be repeated at any time. It makes a handful of netlink calls and does not
// wait.
//
// It returns an error that wraps [ErrGone] if the netns is gone, and one that
// names the remedy if the pod has a ts0 that is not ours.
func Ensure(ns Namespace, host string) (*Link, error) {
	l := &Link{NS: ns, Host: host}
	if err := ns.withHandle(l.ensurePair); err != nil {
		return nil, err
	}
	if err := l.setUp(); err != nil {
		return nil, err
	}
	return l, nil
}

// setUp gives an existing pair its settings, the drop filters first.
func (l *Link) setUp() error {
	if err := l.ensureHostEnd(); err != nil {
		return fmt.Errorf("setting up the host's end %s: %w", l.Host, err)
	}
	if err := l.NS.do(setOffloads); err != nil {
		return fmt.Errorf("setting offloads of %s: %w", PodLink, err)
	}
	if err := l.NS.withHandle(l.raisePodEnd); err != nil {
		return fmt.Errorf("setting up the pod's end %s: %w", PodLink, err)
	}
	return nil
}

// ensurePair creates the pair, unless both ends are there and belong together.
func (l *Link) ensurePair(pod *netlink.Handle) error {
	ts0, err := linkByName(pod.LinkByName, PodLink)
	if err != nil {
		return err
	}
	host, err := linkByName(netlink.LinkByName, l.Host)
	if err != nil {
		return err
	}
	if host != nil && host.Type() != "veth" {
		return fmt.Errorf("interface %s is a %s, not a veth of ours: rename it", l.Host, host.Type())
	}
	switch {
	case ts0 != nil && host != nil && arePair(ts0, host):
		return nil
	case ts0 != nil:
		if host == nil {
			host = l.renamed(ts0)
			if host != nil {
				return l.nameHostEnd(host)
			}
		}
		return fmt.Errorf("the pod has an interface %s that is not ours (%s, index %d): remove or rename it",
			PodLink, ts0.Type(), ts0.Attrs().Index)
	case host != nil:
		// The name is ours and its pod end is not here: the link belongs to a sandbox
		// whose netns is about to go.
		if err := netlink.LinkDel(host); err != nil && !isNotFound(err) {
			return fmt.Errorf("deleting the stale %s: %w", l.Host, err)
		}
	}
	return l.createPair(pod)
}

// createPair creates both ends from within the pod: ts0 never appears in the
// host's netns, where daemons that watch links would see it.
func (l *Link) createPair(pod *netlink.Handle) error {
	here, err := netns.Get()
	if err != nil {
		return fmt.Errorf("opening our own netns: %w", err)
	}
	defer here.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = PodLink
	attrs.MTU = MTU
	// A burst bigger than the engine's batch could not be split in one go.
	attrs.GSOMaxSegs = batchSize
	// A veth uses one queue in either direction. By default the kernel makes one for each
	// processor. Then it takes the others back, and waits for an RCU grace period at each
	// end while it holds the lock of all interfaces (veth_init_queues).
	attrs.NumTxQueues, attrs.NumRxQueues = 1, 1
	err = pod.LinkAdd(&netlink.Veth{
		LinkAttrs:     attrs,
		PeerName:      l.Host,
		PeerNamespace: netlink.NsFd(int(here)),
	})
	if err != nil {
		return fmt.Errorf("creating %s and %s: %w", PodLink, l.Host, err)
	}
	return nil
}

// ensureHostEnd isolates the host end from everything except our packet socket: no ARP,
// no IPv6 address of its own, and the drop filters.
func (l *Link) ensureHostEnd() error {
	host, err := netlink.LinkByName(l.Host)
	if err != nil {
		return goneIfNotFound(err)
	}
	a := host.Attrs()
	l.hostIndex, l.podIndex, l.nsid, l.hostMAC = a.Index, a.ParentIndex, a.NetNsID, a.HardwareAddr
	built, err := isolateHostEnd(l.hostIndex)
	if err != nil {
		return goneIfNotFound(err)
	}
	if built {
		l.missing = append(l.missing, "tc drop filters of "+l.Host)
	}
	l.note(a, l.Host)
	if isRaised(host) {
		return nil
	}
	if err := setAddrGenModeNone(netlink.LinkSetIP6AddrGenMode, host); err != nil {
		return goneIfNotFound(err)
	}
	if err := netlink.LinkSetARPOff(host); err != nil {
		return fmt.Errorf("switching ARP off: %w", goneIfNotFound(err))
	}
	if err := netlink.LinkSetUp(host); err != nil {
		return fmt.Errorf("bringing it up: %w", goneIfNotFound(err))
	}
	return nil
}

func (l *Link) raisePodEnd(pod *netlink.Handle) error {
	ts0, err := pod.LinkByName(PodLink)
	if err != nil {
		return goneIfNotFound(err)
	}
	if err := l.resetPodEnd(pod, ts0); err != nil {
		return err
	}
	if isRaised(ts0) {
		return nil
	}
	if err := setAddrGenModeNone(pod.LinkSetIP6AddrGenMode, ts0); err != nil {
		return err
	}
	// NOARP: no neighbour table and no duplicate address detection. Frames carry ts0's
	// own address as their destination, which the host's stack takes for another
	// host's.
	if err := pod.LinkSetARPOff(ts0); err != nil {
		return fmt.Errorf("switching ARP off: %w", err)
	}
	if err := pod.LinkSetUp(ts0); err != nil {
		return fmt.Errorf("bringing it up: %w", err)
	}
	return nil
}

// isRaised reports whether the link is up with all its flags, so that nothing has to be
// changed. Setting the address generation mode is announced to all listeners, even if
// nothing changes. After a restart each backend would then list the host's interfaces
// for each link of all the others. The mode is set before the link is raised.
func isRaised(link netlink.Link) bool { return link.Attrs().RawFlags&fineFlags == fineFlags }

// setAddrGenModeNone keeps the kernel from giving the link a link-local
// address. A netns or a kernel without IPv6 does not need it and refuses it.
func setAddrGenModeNone(set func(netlink.Link, int) error, link netlink.Link) error {
	const in6AddrGenModeNone = 1 // IN6_ADDR_GEN_MODE_NONE, linux/if_link.h
	err := set(link, in6AddrGenModeNone)
	if err != nil && !isIPv6Off(err) {
		return fmt.Errorf("setting the IPv6 address generation mode: %w", err)
	}
	return nil
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
