// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"tailscale.com/net/tsaddr"
)

// Forward says which packets from ts0 a pod forwards. A forwarded packet has an address
// of the pod's own as its source (masquerading).
type Forward struct {
	To []netip.Prefix // destinations
	// Everything adds all other destinations except those in Never.
	Everything bool
	Never      []netip.Prefix
}

// forward is a router's state of it.
type forward struct {
	Forward
	table   nftTable
	only4   bool // IPv6 cannot be forwarded
	trouble atomic.Pointer[string]
}

// Forward has the pod forward what f says, from the first Set with addresses on, and
// nothing else. The pod forwards nothing but answers from its other interfaces into the
// tailnet, and nothing to an address that routers do not pass on.
//
// It needs nftables with NAT in the kernel. Where that is missing, or a family cannot
// be forwarded, the rest is set up, and [Router.Trouble] says so.
func (r *Router) Forward(f Forward) {
	r.fwd = &forward{Forward: f, table: nftTable{name: "tailscale-nri", chains: []string{"forward", "source"}}}
}

// neverForwarded returns destinations that no pod forwards to, with any configuration:
// the tailnet's own addresses, and those that mean another host on each: loopback,
// link-local, with a cloud's metadata, and multicast.
func neverForwarded() []netip.Prefix {
	return append(tailscaleRanges(),
		netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
		netip.MustParsePrefix("224.0.0.0/3"),
		netip.MustParsePrefix("::/127"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
		netip.MustParsePrefix("fd00:ec2::/32")) // EC2's metadata
}

// NeverForwarded returns the part of p that no pod forwards to, false if that is
// nothing.
func NeverForwarded(p netip.Prefix) (never netip.Prefix, is bool) {
	i := slices.IndexFunc(neverForwarded(), p.Overlaps)
	if i < 0 {
		return netip.Prefix{}, false
	}
	return neverForwarded()[i], true
}

// Trouble returns why the pod does not forward what it should, "" if it does.
func (r *Router) Trouble() string {
	if r == nil || r.fwd == nil {
		return ""
	}
	if t := r.fwd.trouble.Load(); t != nil {
		return *t
	}
	return ""
}

// forward sets forwarding up where it is missing, the filter first. It returns what was
// missing. r.mu is held.
func (r *Router) forward() (missing []string) {
	f := r.fwd
	if f == nil || f.intact(r.ns) {
		return nil
	}
	if f.table.installed() {
		missing = append(missing, "forwarding")
	}
	err := f.install(r.ns)
	why := ""
	if err != nil {
		why = "the pod does not forward what it should: " + err.Error()
		r.warnOnce("the pod does not forward what it should", "err", err)
	}
	f.trouble.Store(&why)
	return missing
}

func (f *forward) install(ns Namespace) error {
	var names []string
	if err := ns.do(func() (err error) { names, err = uplinks(); return err }); err != nil {
		return err
	}
	if err := f.table.install(ns, f.chains(names)); err != nil {
		return err
	}
	return ns.do(func() error {
		if err := forward4(); err != nil {
			return fmt.Errorf("IPv4: %w", err)
		}
		err := forward6()
		if f.only4 = err != nil; f.only4 {
			return fmt.Errorf("IPv6: %w", err)
		}
		return nil
	})
}

// intact reports whether the state that install has put into the pod is there.
func (f *forward) intact(ns Namespace) bool {
	return f.table.intact(ns) && ns.do(func() error { return forwarding(f.only4) }) == nil
}

// uplinks returns the interfaces of the thread's netns except lo and ts0.
func uplinks() (names []string, err error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing interfaces: %w", err)
	}
	for _, l := range links {
		if name := l.Attrs().Name; name != "lo" && name != PodLink {
			names = append(names, name)
		}
	}
	return names, nil
}

// ofFamily returns the prefixes of a family.
func ofFamily(prefixes []netip.Prefix, v6 bool) (out []netip.Prefix) {
	for _, p := range prefixes {
		if tsaddr.PrefixIs6(p) == v6 {
			out = append(out, p.Masked())
		}
	}
	return out
}
