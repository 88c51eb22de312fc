// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// A neighbour that says by a router advertisement that the world is on the pod's link
// opens nothing.
func TestExitHeedsNoAdvertisedRoutes(t *testing.T) {
	world := netip.MustParsePrefix("2001:db8:9::/64")
	c := newCluster(t, "tsexitra", useExit)
	h := c.pod.Netlink()
	learned := func() bool {
		routes, err := h.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Dst: ipNet(world)}, netlink.RT_FILTER_DST)
		if err != nil {
			t.Fatal(err)
		}
		return len(routes) > 0
	}
	for deadline := time.Now().Add(20 * time.Second); !learned(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the pod takes no router advertisement")
		}
		c.node.Do(func() error { return advertise(world) })
	}
	eth0, err := h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	own := netip.MustParsePrefix("2001:db8:7::2/64")
	if err := h.AddrAdd(eth0, &netlink.Addr{IPNet: ipNet(own), Flags: unix.IFA_F_NODAD}); err != nil {
		t.Fatal(err)
	}
	if err := restore(c.router); err != nil {
		t.Fatal(err)
	}
	c.expectWays(t, "with an advertised route", map[string]string{worldAddr6: "", nodeEth6: "eth0", "2001:db8:7::1": "eth0"})
	got := c.arrivals(t)
	c.sendAll(t, got, "UDP", sent{kind: unix.SOCK_DGRAM, payload: []byte("hello")}, [3]string{podEth6, worldAddr6, nodeEth6})
}

// advertise sends a router advertisement on cni0: the prefix is on-link, forever.
func advertise(prefix netip.Prefix) error {
	cni0, err := net.InterfaceByName("cni0")
	if err != nil {
		return err
	}
	conn, err := icmp.ListenPacket("ip6:ipv6-icmp", "::")
	if err != nil {
		return err
	}
	defer conn.Close()
	p := conn.IPv6PacketConn()
	if err := p.SetMulticastHopLimit(255); err != nil {
		return err
	}
	body := []byte{64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} // hop limit, flags, lifetime, timers
	option := []byte{3, 4, byte(prefix.Bits()), 0xc0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}
	option = append(option, prefix.Addr().AsSlice()...)
	m := icmp.Message{Type: ipv6.ICMPTypeRouterAdvertisement, Body: &icmp.RawBody{Data: append(body, option...)}}
	b, err := m.Marshal(nil)
	if err != nil {
		return err
	}
	_, err = p.WriteTo(b, &ipv6.ControlMessage{IfIndex: cni0.Index, HopLimit: 255}, &net.IPAddr{IP: net.IPv6linklocalallnodes, Zone: "cni0"})
	return err
}
