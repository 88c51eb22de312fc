// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"tailscale.com/wgengine/router"
)

// cniTable is the table of a CNI plugin that routes by source, such as sbr.
const cniTable = 100

// addCNIRules moves the pod's default routes into a table of the CNI plugin's, with a
// rule for each address of eth0 that has no priority of its own.
func (c *cluster) addCNIRules(t *testing.T) {
	t.Helper()
	h := c.pod.Netlink()
	eth0, err := h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	for own, gw := range map[string]string{podEth4 + "/32": nodeEth4, podEth6 + "/128": nodeEth6} {
		byMain := &netlink.Route{Gw: net.ParseIP(gw)}
		byCNI := &netlink.Route{Gw: net.ParseIP(gw), LinkIndex: eth0.Attrs().Index, Table: cniTable}
		rule := netlink.NewRule() // without a priority
		rule.Src, rule.Table = ipNet(netip.MustParsePrefix(own)), cniTable
		if byMain.Gw.To4() == nil {
			rule.Family = netlink.FAMILY_V6
		}
		if err := errors.Join(h.RouteAdd(byCNI), h.RuleAdd(rule), h.RouteDel(byMain)); err != nil {
			t.Fatal(err)
		}
	}
}

// routed returns the table and the interface that lead from an address, "" for any, to
// another.
func (c *cluster) routed(t *testing.T, from, to string) (table int, link string) {
	t.Helper()
	h := c.pod.Netlink()
	routes, err := h.RouteGetWithOptions(net.ParseIP(to), &netlink.RouteGetOptions{SrcAddr: net.ParseIP(from)})
	if err != nil || len(routes) != 1 {
		t.Fatalf("from %q to %s: %v (%v)", from, to, routes, err)
	}
	l, err := h.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		t.Fatal(err)
	}
	return routes[0].Table, l.Attrs().Name
}

// Where a CNI plugin has rules and a table of its own, what belongs to eth0 goes by
// these, and what belongs to the tailnet by ours, whoever came first and after each
// change of ours.
func TestRulesOfACNIPlugin(t *testing.T) {
	for _, tt := range []struct {
		name, host string
		when       func(add func(*cluster)) (before []func(*cluster), after func(*cluster))
	}{
		{"before ts0", "tscnibefore", func(add func(*cluster)) ([]func(*cluster), func(*cluster)) {
			return []func(*cluster){add}, func(*cluster) {}
		}},
		{"after ts0", "tscniafter", func(add func(*cluster)) ([]func(*cluster), func(*cluster)) { return nil, add }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before, after := tt.when(func(c *cluster) { c.addCNIRules(t) })
			c := newCluster(t, tt.host, before...)
			after(c)
			serveEcho(t, c.pod)
			got := packetsOf(t, c.device)
			c.holdsBesideCNI(t, got)
			// Other rules of ours, which are added behind all that is there, and these again.
			for _, addrs := range [][]netip.Prefix{prefixes(ownAddr + "/32"), prefixes(ownAddr+"/32", ownAddr6+"/128")} {
				if err := c.router.Set(&router.Config{LocalAddrs: addrs, Routes: prefixes(peerAddr+"/32", "fd7a:115c:a1e0::/48")}); err != nil {
					t.Fatal(err)
				}
			}
			awaitLocal(t, c.pod.Netlink(), netip.MustParseAddr(ownAddr6))
			c.holdsBesideCNI(t, got)
		})
	}
}

func (c *cluster) holdsBesideCNI(t *testing.T, got <-chan flow) {
	t.Helper()
	for _, r := range []struct {
		from, to string
		table    int
		link     string
	}{
		{podEth4, joinAddr, cniTable, "eth0"},
		{podEth4, peerAddr, cniTable, "eth0"}, // an answer of eth0's, though a peer has the address
		{podEth6, joinAddr6, cniTable, "eth0"},
		{ownAddr, peerAddr, tableBound, PodLink},
		{ownAddr6, peerAddr6, tableBound, PodLink},
		{"", peerAddr, tablePeers, PodLink},
		{"", peerAddr6, tablePeers, PodLink},
	} {
		if table, link := c.routed(t, r.from, r.to); table != r.table || link != r.link {
			t.Errorf("from %q to %s by %s, table %d; want %s, table %d", r.from, r.to, link, table, r.link, r.table)
		}
	}
	for from, to := range map[string]string{joinAddr: podEth4, joinAddr6: podEth6} {
		for _, network := range []string{"tcp", "udp", "icmp"} {
			c.node.Do(func() error { return probe(network, from, to) })
		}
	}
	for peer, own := range map[string]string{peerAddr: ownAddr, peerAddr6: ownAddr6} {
		src, dst := netip.MustParseAddr(peer), netip.MustParseAddr(own)
		if _, err := c.device.Write([][]byte{pingPacket(t, src, dst)}, 0); err != nil {
			t.Fatal(err)
		}
		await(t, got, dst, src)
	}
}
