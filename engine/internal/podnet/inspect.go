// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// HostView is what there is in this process's netns. Nothing is left out but
// routes of the kernel's own table "local".
type HostView struct {
	Links  []HostLinkView
	Routes []HostRoute
	Rules  []HostRule
}

// HostLinkView is one interface.
type HostLinkView struct {
	Name  string
	Index int
	Type  string // "veth"; "tuntap" for both tun and tap
	MTU   int    // bytes
	Up    bool
	Addrs []netip.Prefix
}

// HostRoute is one route.
type HostRoute struct {
	Dst    netip.Prefix // 0.0.0.0/0 and ::/0 are the default routes
	Table  int
	Metric int
	Link   string // "" where it leads to none
}

// HostRule is one rule of policy routing.
type HostRule struct {
	Priority int
	Table    int
	V6       bool
}

// OursByName reports whether a name is one that host ends of links have, of any
// sandbox of a container runtime: they have hexadecimal IDs. LXC's links are called
// veth and any six letters or digits.
func OursByName(name string) bool {
	id, is := strings.CutPrefix(name, hostPrefix)
	return is && len(name) == unix.IFNAMSIZ-1 && strings.Trim(id, "0123456789abcdef") == ""
}

// Inspect reads what there is in this process's netns. It changes nothing.
func Inspect() (HostView, error) {
	var v HostView
	links, err := netlink.LinkList()
	if err != nil {
		return v, fmt.Errorf("listing this machine's links: %w", err)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return v, fmt.Errorf("listing this machine's addresses: %w", err)
	}
	names := map[int]string{}
	for _, link := range links {
		a := link.Attrs()
		names[a.Index] = a.Name
		l := HostLinkView{Name: a.Name, Index: a.Index, Type: link.Type(), MTU: a.MTU, Up: a.RawFlags&unix.IFF_UP != 0}
		for _, addr := range addrs {
			if addr.LinkIndex == a.Index {
				l.Addrs = append(l.Addrs, prefixOf(addr.IPNet))
			}
		}
		v.Links = append(v.Links, l)
	}
	if err := v.readRoutes(names); err != nil {
		return v, err
	}
	rules, err := netlink.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return v, fmt.Errorf("listing this machine's rules: %w", noPolicyRouting(err))
	}
	for _, r := range rules {
		v.Rules = append(v.Rules, HostRule{Priority: r.Priority, Table: r.Table, V6: r.Family == netlink.FAMILY_V6})
	}
	return v, nil
}

func (v *HostView) readRoutes(names map[int]string) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if family == netlink.FAMILY_V6 {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		err := netlink.RouteListFilteredIter(family, &netlink.Route{}, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
			if r.Table == unix.RT_TABLE_LOCAL {
				return true
			}
			dst := all
			if r.Dst != nil {
				dst = prefixOf(r.Dst)
			}
			via := []int{r.LinkIndex}
			for _, hop := range r.MultiPath {
				via = append(via, hop.LinkIndex)
			}
			index := slices.Max(via) // 0 where there is none
			v.Routes = append(v.Routes, HostRoute{Dst: dst, Table: r.Table, Metric: r.Priority, Link: names[index]})
			return true
		})
		if err != nil && !isIPv6Off(err) {
			return fmt.Errorf("listing this machine's routes: %w", err)
		}
	}
	return nil
}
