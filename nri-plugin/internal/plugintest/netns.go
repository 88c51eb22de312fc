// SPDX-License-Identifier: BSD-3-Clause

package plugintest

import (
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// InNetns runs f on a thread in a network namespace of its own, which ends with it.
func InNetns(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		ns, err := netns.New()
		if err == nil {
			defer ns.Close()
			defer func() { done <- nil }()
			f()
			return
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// AddLink makes an interface that is up, a tun or one end of a veth, in this thread's
// namespace.
func AddLink(t *testing.T, name string, mtu int, addrs ...string) (index int) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	var link netlink.Link = &netlink.Veth{LinkAttrs: attrs, PeerName: "p" + name[max(0, len(name)-10):]}
	if name == "tailscale0" {
		link = &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TUN}
	}
	Must(t, netlink.LinkAdd(link))
	link, err := netlink.LinkByName(name)
	Must(t, err)
	Must(t, netlink.LinkSetIP6AddrGenMode(link, 1)) // none
	Must(t, netlink.LinkSetUp(link))
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		Must(t, err)
		addr.Flags = unix.IFA_F_NODAD
		Must(t, netlink.AddrAdd(link, addr))
	}
	return link.Attrs().Index
}

// Must ends the test for an error.
func Must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err) // not the test's goroutine
		runtime.Goexit()
	}
}
