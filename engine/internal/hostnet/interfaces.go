// SPDX-License-Identifier: BSD-3-Clause

package hostnet

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"tailscale.com/net/netmon"
)

// interfaces is the list of the host's network interfaces, one for all backends. Each
// backend asks for it at its start, with every change of a link and whenever it looks for
// its endpoints. By itself it would ask the kernel for the addresses of each link
// separately. With fifty pods that was a quarter of the time that a restart takes, most
// of it for the host ends of the pods' own links.
type interfaces struct {
	ask    func() ([]netmon.Interface, error) // the kernel
	failed chan struct{}                      // capacity 1: it could not be asked

	mu      sync.Mutex
	list    []netmon.Interface
	fresh   bool
	watches int // that outdate list
}

// theInterfaces is the host's list. tailscale.com has one hook in a process for it.
var theInterfaces = sync.OnceValue(func() *interfaces {
	in := newInterfaces(listInterfaces)
	netmon.RegisterInterfaceGetter(in.get)
	return in
})

func newInterfaces(ask func() ([]netmon.Interface, error)) *interfaces {
	return &interfaces{ask: ask, failed: make(chan struct{}, 1)}
}

// ShareInterfaces has all backends of this process see one list of the
// host's interfaces, kept fresh until done is closed. Afterwards it is made
// again each time, and so it is while the subscription to the kernel is lost, of
// which failed is told. The monitor looks at the list whenever it is outdated.
func ShareInterfaces(m *Monitor, done <-chan struct{}, failed func(error)) {
	go theInterfaces().watch(done, failed, m.Poll)
}

// listenAgain is the pause before a lost subscription is created again: the kernel
// ends one that does not keep up (ENOBUFS, netlink(7)). It is also that before another
// look at a list that could not be had.
const listenAgain = time.Second

// watch keeps the list fresh until done is closed. It calls look once the list is
// outdated: what looks at an event by itself may come before this watch.
func (in *interfaces) watch(done <-chan struct{}, failed func(error), look func()) {
	for {
		if err := in.listen(done, look); err != nil {
			failed(err)
		}
		select {
		case <-done:
			return
		case <-time.After(listenAgain):
		}
	}
}

// listen keeps the list fresh until done is closed, which is not an error, or a
// subscription is lost.
func (in *interfaces) listen(done <-chan struct{}, look func()) error {
	over, lost := make(chan struct{}), make(chan error, 2)
	defer close(over)
	lose := func(err error) {
		select {
		case lost <- err:
		default:
		}
	}
	links, addrs := make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64)
	if err := netlink.LinkSubscribeWithOptions(links, over, netlink.LinkSubscribeOptions{ErrorCallback: lose}); err != nil {
		return fmt.Errorf("watching this host's links: %w", err)
	}
	defer drain(links)
	if err := netlink.AddrSubscribeWithOptions(addrs, over, netlink.AddrSubscribeOptions{ErrorCallback: lose}); err != nil {
		return fmt.Errorf("watching this host's addresses: %w", err)
	}
	defer drain(addrs)
	in.outdate(1)
	defer func() { in.outdate(-1); look() }()
	for outdated := true; ; { // nobody has told what was before
		if outdated {
			look()
			outdated = false
		}
		select {
		case <-done:
			return nil
		case <-in.failed:
			time.AfterFunc(listenAgain, look) // netmon tries no second time
		case err := <-lost:
			return fmt.Errorf("watching this host's interfaces: %w", err)
		case link, open := <-links:
			if !open {
				return errors.New("watching this host's links: the subscription ended")
			}
			outdated = in.changed(int(link.Index), nil)
		case addr, open := <-addrs:
			if !open {
				return errors.New("watching this host's addresses: the subscription ended")
			}
			outdated = in.changed(addr.LinkIndex, addr.LinkAddress.IP)
		}
	}
}

// changed takes in an event of a link, or of the address of one, and reports whether
// it outdates the list. The host ends of pods come and go all the time, and without an
// address of their own they are not in the list: for them the kernel is not asked again.
func (in *interfaces) changed(link int, addr net.IP) (outdated bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	isListed := func(i netmon.Interface) bool { return i.Index == link }
	outdated = addr != nil && isEndpoint(addr) || slices.ContainsFunc(in.list, isListed)
	in.fresh = in.fresh && !outdated
	return outdated
}

// isEndpoint reports whether a path can begin at the address. IPv6 link-local
// addresses are on every link, and not an endpoint.
func isEndpoint(ip net.IP) bool { return ip.To4() != nil || !ip.IsLinkLocalUnicast() }

// drain lets a subscription's goroutine end, which may be about to send.
func drain[T any](updates <-chan T) {
	go func() {
		for range updates {
		}
	}()
}

func (in *interfaces) outdate(watches int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.fresh = false
	in.watches += watches
}

// get is the function for [netmon.RegisterInterfaceGetter].
func (in *interfaces) get() ([]netmon.Interface, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.fresh {
		list, err := in.ask()
		if err != nil {
			select {
			case in.failed <- struct{}{}:
			default:
			}
			return nil, err
		}
		in.list, in.fresh = list, in.watches > 0
	}
	return slices.Clone(in.list), nil
}

// listInterfaces asks the kernel twice, however many links there are, and leaves out
// those over which no path can go. It copies what it returns. [net.Interfaces] and
// netlink return slices of the kernel's whole answer, 300 KB for 200 pods, and each
// backend would keep all of that for as long as it keeps one address.
func listInterfaces() ([]netmon.Interface, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	addrs, err := listAddrs()
	if err != nil {
		return nil, err
	}
	at := map[int][]net.Addr{}
	usable := map[int]bool{}
	for _, a := range addrs {
		at[a.LinkIndex] = append(at[a.LinkIndex], &net.IPNet{IP: slices.Clone(a.IP), Mask: slices.Clone(a.Mask)})
		if isEndpoint(a.IP) {
			usable[a.LinkIndex] = true
		}
	}
	var list []netmon.Interface
	for _, link := range links {
		if usable[link.Index] {
			link.HardwareAddr = slices.Clone(link.HardwareAddr)
			list = append(list, netmon.Interface{Interface: &link, AltAddrs: at[link.Index]})
		}
	}
	return list, nil
}

// interruptions is how many lists in a row the kernel may interrupt. While many pods
// start, about one in ten is.
const interruptions = 20

// listAddrs asks for all addresses, again if one came or went meanwhile: the list may
// lack others then.
func listAddrs() (addrs []netlink.Addr, err error) {
	for range interruptions {
		addrs, err = netlink.AddrList(nil, netlink.FAMILY_ALL)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return addrs, err
}
