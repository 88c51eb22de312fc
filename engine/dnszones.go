// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"tailscale.com/net/dns"
	"tailscale.com/types/dnstype"
	"tailscale.com/util/dnsname"

	"tailscale-nri/engine/internal/podstate"
)

// dnsZones decides whether a name is asked of the tailnet or of the nameservers of the
// cluster. It is not changed.
//
//  1. The cluster's domain, cluster.local, and the reverse zones of Config.ClusterRanges:
//     the cluster.
//  2. The tailnet's names: its MagicDNS domain, the domains of its split DNS, its
//     extra records, the reverse zones of its addresses: the tailnet.
//  3. The pod's other search domains, names of one label, reverse zones: the cluster.
//  4. All others: the tailnet, if it has resolvers for all names, otherwise the cluster.
type dnsZones struct {
	cluster []string // zones of rule 1
	search  []string // zones of rule 3
	tailnet []string // zones of rule 2, sorted: a map takes three times the memory, of each pod
	all     bool     // the tailnet has resolvers for all names
}

// newDNSZones returns the zones for a pod with this resolv.conf, which may be nil,
// and the tailnet's configuration, which may be nil too.
func newDNSZones(c *podstate.ResolvConf, ranges []netip.Prefix, cfg *dns.Config) *dnsZones {
	z := &dnsZones{cluster: c.ClusterZones()}
	for _, p := range ranges {
		z.cluster = append(z.cluster, reverseZones(p)...)
	}
	if c != nil {
		for _, domain := range c.Search {
			z.search = append(z.search, podstate.PlainName(domain))
		}
	}
	if cfg == nil {
		return z
	}
	z.all, z.tailnet = len(cfg.DefaultResolvers) > 0, make([]string, 0, len(cfg.Routes))
	for suffix := range cfg.Routes {
		if name := podstate.PlainName(string(suffix)); name != "" {
			z.tailnet = append(z.tailnet, name)
		}
	}
	slices.Sort(z.tailnet)
	z.tailnet = slices.Compact(z.tailnet)
	return z
}

// ofTailnet reports whether the name is to be asked of the tailnet.
func (z *dnsZones) ofTailnet(name string) bool {
	if slices.ContainsFunc(z.cluster, func(zone string) bool { return isWithin(name, zone) }) {
		return false
	}
	for rest := name; rest != ""; {
		if _, ok := slices.BinarySearch(z.tailnet, rest); ok {
			return true
		}
		_, rest, _ = strings.Cut(rest, ".")
	}
	return z.all && strings.Contains(name, ".") && !isWithin(name, "arpa") &&
		!slices.ContainsFunc(z.search, func(zone string) bool { return isWithin(name, zone) })
}

// isWithin reports whether the name is the zone, or in it. Both are plain names.
func isWithin(name, zone string) bool {
	rest, ok := strings.CutSuffix(name, zone)
	return ok && (rest == "" || strings.HasSuffix(rest, "."))
}

// reverseZones returns the zones in which the names of the prefix's addresses are: one
// zone if the prefix ends with a whole label, otherwise one for each value of its last
// label.
func reverseZones(p netip.Prefix) (zones []string) {
	p = p.Masked()
	addr, step, suffix := p.Addr().AsSlice(), 8, "in-addr.arpa"
	if p.Addr().Is6() {
		step, suffix = 4, "ip6.arpa"
	}
	label := func(i int) int {
		if step == 8 {
			return int(addr[i])
		}
		return int(addr[i/2]>>(4*(1-i%2))) & 0xf
	}
	text := func(v int) string {
		if step == 8 {
			return fmt.Sprintf("%d.", v)
		}
		return fmt.Sprintf("%x.", v)
	}
	whole := p.Bits() / step
	for i := range whole {
		suffix = text(label(i)) + suffix
	}
	if p.Bits()%step == 0 {
		return []string{suffix}
	}
	for v := range 1 << (step - p.Bits()%step) {
		zones = append(zones, text(label(whole)+v)+suffix)
	}
	return zones
}

// queryName returns the name that a query asks for, as a plain name. ok is false if q
// is not a query.
func queryName(q []byte) (name string, ok bool) {
	const header, response = 12, 0x80
	if len(q) < header || q[2]&response != 0 || binary.BigEndian.Uint16(q[4:]) == 0 {
		return "", false
	}
	var b strings.Builder
	for rest := q[header:]; len(rest) > 0; {
		size := int(rest[0])
		if size == 0 {
			return strings.ToLower(b.String()), true
		}
		if size > 63 || len(rest) < 1+size || b.Len() > 255 {
			break
		}
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		b.Write(rest[1 : 1+size])
		rest = rest[1+size:]
	}
	return "", false
}

// tailnetResolvers returns the tailnet's configuration for the backend's resolver,
// which is asked only for the tailnet's names.
//
// The resolver of an exit node is left out: it is asked over PeerAPI, whose client is
// not in the program, and knows nothing of the cluster. Without any domain the backend
// assumes that the operating system asks the resolvers by itself (net/dns/manager.go,
// compileConfig), so it is given one.
func tailnetResolvers(cfg *dns.Config) *dns.Config {
	if cfg == nil || len(cfg.DefaultResolvers) == 0 {
		return cfg
	}
	c := cfg.Clone()
	c.DefaultResolvers = slices.DeleteFunc(c.DefaultResolvers, func(r *dnstype.Resolver) bool {
		return strings.HasPrefix(r.Addr, "http://")
	})
	if len(c.DefaultResolvers) > 0 && len(c.Routes) == 0 {
		c.Routes = map[dnsname.FQDN][]*dnstype.Resolver{"invalid.": nil}
	}
	return c
}

// lastRoutes are those of the last configuration that a pod was given.
var lastRoutes atomic.Pointer[map[dnsname.FQDN][]*dnstype.Resolver]

// shareRoutes returns the configuration, with the routes of the last one if they are
// equal, as those of all pods of a tailnet are. Some 65 reverse zones are among them, 13
// KB a pod. Nobody changes a configuration once it has been passed on.
func shareRoutes(cfg *dns.Config) *dns.Config {
	equal := func(a, b []*dnstype.Resolver) bool { return slices.EqualFunc(a, b, (*dnstype.Resolver).Equal) }
	if last := lastRoutes.Load(); last != nil && maps.EqualFunc(*last, cfg.Routes, equal) {
		c := *cfg
		c.Routes = *last
		return &c
	}
	routes := cfg.Routes
	lastRoutes.Store(&routes)
	return cfg
}
