// SPDX-License-Identifier: BSD-3-Clause

package podstate

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tailscale.com/net/tsaddr"
)

// ResolvConfFile is mounted over /etc/resolv.conf of the pod's containers.
const ResolvConfFile = "resolv.conf"

// ResolvConf has the parts of a resolv.conf that are needed.
type ResolvConf struct {
	Nameservers []netip.Addr `json:"nameservers,omitempty"`
	Search      []string     `json:"search,omitempty"` // as written
	Others      []string     `json:"others,omitempty"` // other lines, options among them
}

// maxSearchLine is the length of a line, with its end, beyond which musl ignores it
// (musl 1.2, src/network/resolvconf.c: fgets with 256 bytes). A search line that
// fits keeps fitting. glibc before 2.26 ignores what comes after the sixth domain,
// which the tailnet's may then be.
const maxSearchLine = 255

// maxNameservers is how many nameservers count (MAXNS, resolv.conf(5)).
const maxNameservers = 3

// maxResolvConf is the size in bytes beyond which a file does not pass for a
// resolv.conf: the kubelet's have 2048 for the search domains at most.
const maxResolvConf = 16 << 10

// ParseResolvConf reads the resolv.conf that the kubelet made for a pod.
func ParseResolvConf(data []byte) (*ResolvConf, error) {
	if len(data) > maxResolvConf {
		return nil, fmt.Errorf("the pod's resolv.conf has %d bytes, at most %d can be kept: shorten its dnsConfig", len(data), maxResolvConf)
	}
	c := &ResolvConf{}
	own := false
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		fields := strings.Fields(line)
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case fields[0] == "nameserver":
			own = c.addNameserver(fields[1:]) || own
		case fields[0] == "search" || fields[0] == "domain":
			c.Search = fields[1:] // the last one counts (resolv.conf(5))
		default:
			c.Others = append(c.Others, line)
		}
	}
	switch {
	case len(c.Nameservers) > 0:
		return c, nil
	case own:
		return nil, fmt.Errorf("the pod's resolv.conf names no nameserver but %v, which is the pod's own node now: "+
			"set dnsPolicy: ClusterFirst, or dnsConfig.nameservers", tsaddr.TailscaleServiceIP())
	}
	return nil, errors.New("the pod's resolv.conf names no nameserver that could be asked: set dnsPolicy: ClusterFirst, or dnsConfig.nameservers")
}

// addNameserver adds a nameserver that can be asked. It reports whether that is the
// pod's own node.
func (c *ResolvConf) addNameserver(fields []string) (own bool) {
	if len(fields) == 0 {
		return false
	}
	addr, err := netip.ParseAddr(fields[0])
	switch {
	case err != nil || addr.Zone() != "":
		return false // it has no address, or the interface of an unknown netns
	case addr.Unmap() == tsaddr.TailscaleServiceIP() || addr == tsaddr.TailscaleServiceIPv6():
		return true
	case len(c.Nameservers) == maxNameservers:
		return false
	}
	c.Nameservers = append(c.Nameservers, addr.Unmap())
	return false
}

// Equal reports whether the two have the same content.
func (c *ResolvConf) Equal(o *ResolvConf) bool {
	return c != nil && o != nil && slices.Equal(c.Nameservers, o.Nameservers) &&
		slices.Equal(c.Search, o.Search) && slices.Equal(c.Others, o.Others)
}

// Format returns the file for a pod with this original, with the tailnet's search
// domains after its own. With spare the original nameservers are named too, for times
// when the node does not answer. left are the domains that were left out.
//
// One nameserver is named if that is enough: musl asks all of them at once and takes
// the first answer, even that a name does not exist (musl 1.2,
// src/network/res_msend.c).
func (c *ResolvConf) Format(tailnet []string, spare bool) (data []byte, left []string) {
	var b bytes.Buffer
	b.WriteString("# Kept by tailscale-nri.\n")
	own := tsaddr.TailscaleServiceIP()
	if !slices.ContainsFunc(c.Nameservers, netip.Addr.Is4) {
		own = tsaddr.TailscaleServiceIPv6() // the NAT that replaces the node's server while it is away works within one family
	}
	fmt.Fprintf(&b, "nameserver %v\n", own)
	if spare {
		for _, addr := range c.Nameservers[:min(maxNameservers-1, len(c.Nameservers))] {
			fmt.Fprintf(&b, "nameserver %v\n", addr)
		}
	}
	line := "search"
	for _, domain := range c.Search {
		line += " " + domain
	}
	for _, domain := range tailnet {
		known := slices.ContainsFunc(c.Search, func(s string) bool { return strings.EqualFold(strings.TrimSuffix(s, "."), domain) })
		switch {
		case known:
		case len(line)+len(domain)+len(" \n") > maxSearchLine:
			left = append(left, domain)
		default:
			line += " " + domain
		}
	}
	if line != "search" {
		b.WriteString(line + "\n")
	}
	for _, other := range c.Others {
		b.WriteString(other + "\n")
	}
	return b.Bytes(), left
}

// ClusterZones returns the domains below which the names of services are. They follow
// from the search domains: what comes after a label "svc". For a pod whose search
// domains have none, it is cluster.local, which clusters have unless they were given
// another.
func (c *ResolvConf) ClusterZones() []string {
	zones := []string{"cluster.local"}
	if c == nil {
		return zones
	}
	for _, domain := range c.Search {
		labels := "." + PlainName(domain)
		if _, zone, ok := strings.Cut(labels, ".svc."); ok && !slices.Contains(zones, zone) {
			zones = append(zones, zone)
		}
	}
	return zones
}

// PlainName returns a domain name in lower case, without the last dot.
func PlainName(s string) string { return strings.ToLower(strings.TrimSuffix(s, ".")) }
