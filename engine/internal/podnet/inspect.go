// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// HostView is the network configuration of a netns. Only routes of the kernel's own
// table "local" are left out.
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
	Link   string // "" if it leads to none
	// Type is "unicast" for a route that leads somewhere, "throw", "unreachable",
	// "blackhole", "prohibit", or the kernel's number of any other type.
	Type string
}

// HostRule is one rule of policy routing.
type HostRule struct {
	Priority int
	Table    int
	V6       bool
	Text     string // selector and action, similar to ip rule's output
}

// OursByName reports whether host ends of links have such names, for any sandbox of a
// container runtime: sandboxes have hexadecimal IDs. LXC's links are called veth and
// any six letters or digits.
func OursByName(name string) bool {
	id, is := strings.CutPrefix(name, hostPrefix)
	return is && len(name) == unix.IFNAMSIZ-1 && strings.Trim(id, "0123456789abcdef") == ""
}

// Inspect reads the configuration of this process's netns. It changes nothing.
func Inspect() (HostView, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return HostView{}, fmt.Errorf("opening netlink: %w", err)
	}
	defer h.Close()
	v, err := inspect(h)
	if err != nil {
		return v, fmt.Errorf("looking at this host: %w", err)
	}
	return v, nil
}

// Inspect reads the configuration of the namespace. It changes nothing.
func (n Namespace) Inspect() (v HostView, err error) {
	err = n.withHandle(func(h *netlink.Handle) error {
		v, err = inspect(h)
		return err
	})
	if err != nil {
		return v, fmt.Errorf("looking at the pod's netns: %w", err)
	}
	return v, nil
}

func inspect(h *netlink.Handle) (HostView, error) {
	var v HostView
	links, err := h.LinkList()
	if err != nil {
		return v, fmt.Errorf("listing links: %w", err)
	}
	addrs, err := h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return v, fmt.Errorf("listing addresses: %w", err)
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
	if err := v.readRoutes(h, names); err != nil {
		return v, err
	}
	rules, err := h.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return v, fmt.Errorf("listing rules: %w", noPolicyRouting(err))
	}
	for _, r := range rules {
		v.Rules = append(v.Rules, HostRule{Priority: r.Priority, Table: r.Table, V6: r.Family == netlink.FAMILY_V6, Text: ruleText(&r)})
	}
	return v, nil
}

func (v *HostView) readRoutes(h *netlink.Handle, names map[int]string) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if family == netlink.FAMILY_V6 {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		err := h.RouteListFilteredIter(family, &netlink.Route{}, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
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
			v.Routes = append(v.Routes, HostRoute{Dst: dst, Table: r.Table, Metric: r.Priority, Link: names[index], Type: routeType(r.Type)})
			return true
		})
		if err != nil && !isIPv6Off(err) {
			return fmt.Errorf("listing routes: %w", err)
		}
	}
	return nil
}

func routeType(kind int) string {
	switch kind {
	case unix.RTN_UNICAST:
		return "unicast"
	case unix.RTN_THROW:
		return "throw"
	case unix.RTN_UNREACHABLE:
		return "unreachable"
	case unix.RTN_BLACKHOLE:
		return "blackhole"
	case unix.RTN_PROHIBIT:
		return "prohibit"
	}
	return strconv.Itoa(kind)
}

func ruleText(r *netlink.Rule) string {
	var b strings.Builder
	if r.Invert {
		b.WriteString("not ")
	}
	b.WriteString("from ")
	if r.Src == nil {
		b.WriteString("all")
	} else {
		b.WriteString(r.Src.String())
	}
	for _, part := range []struct {
		key   string
		value string
	}{{"to", netText(r.Dst)}, {"iif", r.IifName}, {"oif", r.OifName}} {
		if part.value != "" {
			fmt.Fprintf(&b, " %s %s", part.key, part.value)
		}
	}
	if r.Mark != 0 {
		fmt.Fprintf(&b, " fwmark %#x", r.Mark)
	}
	switch {
	case r.Goto > 0:
		fmt.Fprintf(&b, " goto %d", r.Goto)
	case r.Table != 0:
		fmt.Fprintf(&b, " lookup %d", r.Table)
	default:
		fmt.Fprintf(&b, " %s", routeType(int(r.Type)))
	}
	return b.String()
}

func netText(n *net.IPNet) string {
	if n == nil {
		return ""
	}
	return n.String()
}
