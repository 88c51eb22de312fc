// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"tailscale.com/net/tsaddr"
)

// resolvConfFile is mounted over /etc/resolv.conf of the pod's containers.
const resolvConfFile = "resolv.conf"

// resolvConf has the parts of a resolv.conf that are needed.
type resolvConf struct {
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

// parseResolvConf reads the resolv.conf that the kubelet made for a pod.
func parseResolvConf(data []byte) (*resolvConf, error) {
	if len(data) > maxResolvConf {
		return nil, fmt.Errorf("the pod's resolv.conf has %d bytes, at most %d can be kept: shorten its dnsConfig", len(data), maxResolvConf)
	}
	c := &resolvConf{}
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
func (c *resolvConf) addNameserver(fields []string) (own bool) {
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

// equal reports whether the two have the same content.
func (c *resolvConf) equal(o *resolvConf) bool {
	return c != nil && o != nil && slices.Equal(c.Nameservers, o.Nameservers) &&
		slices.Equal(c.Search, o.Search) && slices.Equal(c.Others, o.Others)
}

// format returns the file for a pod with this original, with the tailnet's search
// domains after its own. With spare the original nameservers are named too, for times
// when the node does not answer. left are the domains that were left out.
//
// One nameserver is named if that is enough: musl asks all of them at once and takes
// the first answer, even that a name does not exist (musl 1.2,
// src/network/res_msend.c).
func (c *resolvConf) format(tailnet []string, spare bool) (data []byte, left []string) {
	var b bytes.Buffer
	b.WriteString("# Kept by tailscale-nri.\n")
	own := tsaddr.TailscaleServiceIP()
	if !slices.ContainsFunc(c.Nameservers, netip.Addr.Is4) {
		own = tsaddr.TailscaleServiceIPv6() // the NAT that replaces us while we are away works within one family
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

// clusterZones returns the domains below which the names of services are. They follow
// from the search domains: what comes after a label "svc". For a pod whose search
// domains have none, it is cluster.local, which clusters have unless they were given
// another.
func (c *resolvConf) clusterZones() []string {
	zones := []string{"cluster.local"}
	if c == nil {
		return zones
	}
	for _, domain := range c.Search {
		labels := "." + plainName(domain)
		if _, zone, ok := strings.Cut(labels, ".svc."); ok && !slices.Contains(zones, zone) {
			zones = append(zones, zone)
		}
	}
	return zones
}

// plainName returns a domain name in lower case, without the last dot.
func plainName(s string) string { return strings.ToLower(strings.TrimSuffix(s, ".")) }

// rewriteFile writes an existing file in place, and makes a missing one: a bind mount
// keeps the file that it was made of, whatever its name leads to later. A reader sees
// the earlier content or the new one, perhaps with empty lines at its end. What the pod
// has written there, of any size, is not read into memory. It does not wait for a lease
// that a program of the pod has on the file, which the kernel would otherwise make it
// do for 45 seconds (fcntl(2), F_SETLEASE).
func rewriteFile(path string, data []byte) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("a program of the pod holds a lease on /etc/resolv.conf, have it release that: %w", err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	was, err := io.ReadAll(io.LimitReader(f, maxResolvConf+1))
	switch {
	case err != nil:
		return err
	case bytes.Equal(was, data):
	case len(was) > maxResolvConf:
		err = f.Truncate(0)
		was = nil
		fallthrough
	default:
		padded := append(slices.Clone(data), bytes.Repeat([]byte("\n"), max(0, len(was)-len(data)))...)
		if err == nil {
			_, err = f.WriteAt(padded, 0)
		}
		if err == nil { // otherwise it would have zeros where writing has failed
			err = f.Truncate(int64(len(data)))
		}
	}
	return errors.Join(err, f.Chmod(0o644)) // the pod's user may be anyone, and the umask anything
}

func (n *node) resolvConfPath() string { return filepath.Join(n.dir, resolvConfFile) }
