// SPDX-License-Identifier: BSD-3-Clause

package nstest

import (
	"testing"

	"github.com/vishvananda/netlink"
)

// HostLink makes a link of the host, which is up and has the address.
func HostLink(t *testing.T, name, cidr string) *netlink.Veth {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	link := &netlink.Veth{LinkAttrs: attrs, PeerName: name + "p"}
	addr, err := netlink.ParseAddr(cidr)
	if err == nil {
		err = netlink.LinkAdd(link)
	}
	if err == nil {
		t.Cleanup(func() { _ = netlink.LinkDel(link) })
		err = netlink.AddrAdd(link, addr)
	}
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err == nil {
		var peer netlink.Link
		if peer, err = netlink.LinkByName(name + "p"); err == nil {
			err = netlink.LinkSetUp(peer)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return link
}
