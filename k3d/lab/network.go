// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

const bridgeName = "lab0"

// netNode is one network namespace on the lab's bridge, with its mount namespace.
type netNode struct {
	ns       string
	ip4, ip6 string
	prepare  func() error // what its mount namespace holds; runs inside
}

// hardwareAddr is the same each time a node is made, as that of a machine is after a reboot: its neighbours remember it.
func hardwareAddr(ip4 string) net.HardwareAddr {
	return append(net.HardwareAddr{0x02, 0x69}, net.ParseIP(ip4).To4()...)
}

// portName is the bridge's end of a node's veth.
func portName(ns string) string { return "to-" + ns }

// makeBridgeNS makes the namespace of the control plane with the bridge that all others hang on.
func (c Config) makeBridgeNS() error {
	if err := c.makeNetNS(netNS); err != nil {
		return err
	}
	if err := c.inNetNS(netNS, setSysctls); err != nil {
		return fmt.Errorf("setting up namespace %s: %w", netNS, err)
	}
	if err := c.withLinks(netNS, makeBridge); err != nil {
		return fmt.Errorf("making the lab's bridge: %w", err)
	}
	return nil
}

// makeNetNode makes the network namespace and the mount namespace of s, and its veth. The links are born inside of
// namespaces, so the machine's own never sees one.
func (c Config) makeNetNode(ctx context.Context, s netNode) error {
	if err := c.makeNetNS(s.ns); err != nil {
		return err
	}
	if err := c.inNetNS(s.ns, setSysctls); err != nil {
		return fmt.Errorf("setting up namespace %s: %w", s.ns, err)
	}
	if err := c.connect(s); err != nil {
		return fmt.Errorf("connecting namespace %s: %w", s.ns, err)
	}
	err := c.makeMountNS(mountNS(s.ns), s.prepare)
	if err != nil || !c.Uplink {
		return err
	}
	return c.startUplink(ctx, s.ns)
}

// setSysctls sets what is the calling thread's network namespace's own: addresses are usable at once, and the node
// forwards for its pods.
func setSysctls() error {
	if !hasIPv6() {
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
	}
	return errors.Join(
		os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0),
		os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0),
		os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0),
	)
}

// hasIPv6 is false on a machine that was booted with ipv6.disable=1; its lab has IPv4 alone.
func hasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// withLinks opens netlink inside namespace ns, brings its loopback up and hands it to fn.
func (c Config) withLinks(ns string, fn func(*netlink.Handle) error) error {
	file, err := os.Open(c.nsFile(ns))
	if err != nil {
		return err
	}
	defer file.Close()
	links, err := netlink.NewHandleAt(netns.NsHandle(file.Fd()), netlinkRoute)
	if err != nil {
		return fmt.Errorf("opening netlink in namespace %s: %w", ns, err)
	}
	defer links.Close()
	if err := up(links, "lo"); err != nil {
		return err
	}
	return fn(links)
}

const netlinkRoute = 0 // NETLINK_ROUTE, netlink(7)

func makeBridge(links *netlink.Handle) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeName
	// Left to itself a bridge takes on the address of one of its ports, and another one when that goes.
	attrs.HardwareAddr = hardwareAddr(NetIP4)
	if err := links.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return err
	}
	return address(links, bridgeName, NetIP4, NetIP6)
}

// connect makes the veth between the bridge and eth0 of s, with s's addresses and its routes.
func (c Config) connect(s netNode) error {
	port := portName(s.ns)
	far, err := os.Open(c.nsFile(s.ns))
	if err != nil {
		return err
	}
	defer far.Close()
	err = c.withLinks(netNS, func(links *netlink.Handle) error {
		bridge, err := links.LinkByName(bridgeName)
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex = port, bridge.Attrs().Index
		veth := &netlink.Veth{
			LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(far.Fd()), PeerHardwareAddr: hardwareAddr(s.ip4),
		}
		if err := links.LinkAdd(veth); err != nil {
			return fmt.Errorf("making veth %s: %w", port, err)
		}
		return up(links, port)
	})
	if err != nil {
		return err
	}
	return c.withLinks(s.ns, func(links *netlink.Handle) error {
		if err := address(links, "eth0", s.ip4, s.ip6); err != nil {
			return err
		}
		if c.Uplink {
			return nil
		}
		return defaultRoutes(links, "eth0")
	})
}

func up(links *netlink.Handle, name string) error {
	link, err := links.LinkByName(name)
	if err != nil {
		return fmt.Errorf("finding link %s: %w", name, err)
	}
	if err := links.LinkSetUp(link); err != nil {
		return fmt.Errorf("bringing link %s up: %w", name, err)
	}
	return nil
}

// address brings a link up with an IPv4 /24 and an IPv6 /64.
func address(links *netlink.Handle, name, ip4, ip6 string) error {
	if err := up(links, name); err != nil {
		return err
	}
	link, err := links.LinkByName(name)
	if err != nil {
		return err
	}
	addrs := []string{ip4 + "/24"}
	if hasIPv6() {
		addrs = append(addrs, ip6+"/64")
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		if err := links.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("adding %s to %s: %w", a, name, err)
		}
	}
	return nil
}

// defaultRoutes leads to the lab's bridge, where nothing goes further. Without a default route tailscaled takes the
// machine to be offline.
func defaultRoutes(links *netlink.Handle, name string) error {
	link, err := links.LinkByName(name)
	if err != nil {
		return err
	}
	gateways := []string{NetIP4}
	if hasIPv6() {
		gateways = append(gateways, NetIP6)
	}
	for _, gw := range gateways {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gw)}
		if err := links.RouteAdd(route); err != nil {
			return fmt.Errorf("adding the default route by %s: %w", gw, err)
		}
	}
	return nil
}
