// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
)

func addRoute(t *testing.T, index, table int, dst string) {
	t.Helper()
	p := netip.MustParsePrefix(dst)
	plugintest.Must(t, netlink.RouteAdd(&netlink.Route{
		LinkIndex: index, Table: table, Scope: netlink.SCOPE_LINK,
		Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
	}))
}

func TestCheckMTU(t *testing.T) {
	m := testMachine(t)
	plugintest.InNetns(t, func() { expect(t, look(t, m, checkMTU), ResultUnknown, "no default route", "") })
	for mtu, want := range map[int][2]string{1360: {ResultOK, ResultOK}, 1359: {ResultOK, ResultWarn}, 1339: {ResultWarn, ResultWarn}} {
		plugintest.InNetns(t, func() {
			index := plugintest.AddLink(t, "up0", mtu, "192.0.2.1/24", "2001:db8::1/64")
			addRoute(t, index, unix.RT_TABLE_MAIN, "0.0.0.0/0")
			addRoute(t, index, unix.RT_TABLE_MAIN, "::/0")
			got := look(t, m, checkMTU)
			for i, need := range []int{1340, 1360} {
				remedy := ""
				if want[i] == ResultWarn {
					remedy = RemedyMTU
				}
				expect(t, got, want[i], fmt.Sprintf("leaves by up0, MTU %d; a full packet of ts0 takes %d", mtu, need), remedy)
			}
		})
	}
}

func TestCheckRanges(t *testing.T) {
	plugintest.InNetns(t, func() {
		plugintest.AddLink(t, "tailscale0", 1280, "100.100.1.1/32")
		index := plugintest.AddLink(t, "cni0", 1500, "10.42.0.1/24")
		expect(t, look(t, testMachine(t), checkRanges), ResultOK, "not in TS_CLUSTER_RANGES; addresses of Services are not seen", "")
		inPod := look(t, testMachine(t, config.EnvServiceHost+"=10.43.0.1"), checkRanges)
		expect(t, inPod, ResultOK, "no address or route", "")
		if strings.Contains(inPod[0].Seen, "Services") {
			t.Errorf("got %+v", inPod)
		}
		expect(t, look(t, testMachine(t, config.EnvServiceHost+"=100.70.0.1"), checkRanges), ResultWarn, "100.70.0.1/32 (KUBERNETES_SERVICE_HOST)", RemedyRanges)

		plugintest.AddLink(t, "join0", 1500, "100.64.0.2/16", "fd7a:115c:a1e0::2/64")
		addRoute(t, index, unix.RT_TABLE_MAIN, "100.80.0.7/32") // a pod's
		got := look(t, testMachine(t), checkRanges)
		for _, seen := range []string{"100.64.0.2/16 (address on join0)", "fd7a:115c:a1e0::2/64 (address on join0)", "100.80.0.7/32 (route by cni0)"} {
			expect(t, got, ResultWarn, seen, RemedyRanges)
		}
		named := testMachine(t, settings.ClusterRanges+"=100.64.0.0/16,100.80.0.0/12,fd7a:115c:a1e0::/64")
		expect(t, look(t, named, checkRanges), ResultOK, "no address or route", "")
		expect(t, look(t, testMachine(t, settings.ClusterRanges+"=100.64.0.0/10"), checkRanges), ResultWarn, "100.64.0.0/10", RemedyRangesWhole)
	})
}

func TestCheckTailscaled(t *testing.T) {
	m := testMachine(t)
	plugintest.InNetns(t, func() {
		expect(t, look(t, m, checkTailscaled), ResultOK, "none has an interface", "")
		index := plugintest.AddLink(t, "tailscale0", 1280, "100.100.1.1/32")
		expect(t, look(t, m, checkTailscaled), ResultOK, "without rules", "")
		rule := netlink.NewRule()
		rule.Priority, rule.Table = 5270, tailscaledTable
		plugintest.Must(t, netlink.RuleAdd(rule))
		addRoute(t, index, tailscaledTable, "100.100.2.2/32")
		expect(t, look(t, m, checkTailscaled), ResultOK, "with neither an exit node nor accepted routes", "")
		addRoute(t, index, tailscaledTable, "198.51.100.0/24")
		expect(t, look(t, m, checkTailscaled), ResultWarn, "accepted 1 routes (198.51.100.0/24)", RemedyAccepted)
		addRoute(t, index, tailscaledTable, "0.0.0.0/0")
		expect(t, look(t, m, checkTailscaled), ResultWarn, "an exit node is set", RemedyExitNode)
	})
}

func TestCheckManagers(t *testing.T) {
	m := testMachine(t)
	plugintest.InNetns(t, func() {
		plugintest.AddLink(t, "vetheth0", 1500, "10.0.0.1/24") // somebody else's
		expect(t, look(t, m, checkManagers), ResultUnknown, "no link of a pod yet", "")
		index := plugintest.AddLink(t, "vetht0123456789", 1280)
		expect(t, look(t, m, checkManagers), ResultUnknown, "not visible from here", "")

		networkd := fmt.Sprintf("run/systemd/netif/links/%d", index)
		for _, state := range []string{"unmanaged", "pending"} {
			m.put(t, networkd, "# This is private data. Do not parse.\nADMIN_STATE="+state+"\nOPER_STATE=carrier\n")
			expect(t, look(t, m, checkManagers), ResultOK, "1 links, none managed", "")
		}
		m.put(t, networkd, "ADMIN_STATE=configuring\n")
		expect(t, look(t, m, checkManagers), ResultWarn, "managed by systemd-networkd (configuring)", RemedyManager)

		m = testMachine(t)
		nm := fmt.Sprintf("proc/1/root/run/NetworkManager/devices/%d", index)
		m.put(t, nm, "[device]\nmanaged=false\n")
		expect(t, look(t, m, checkManagers), ResultOK, "none managed", "")
		m.put(t, nm, "[device]\nmanaged=true\n")
		expect(t, look(t, m, checkManagers), ResultWarn, "managed by NetworkManager", RemedyManager)

		plugintest.AddLink(t, "vethtabcdef0123", 1280, "169.254.3.4/16")
		expect(t, look(t, testMachine(t), checkManagers), ResultWarn, "vethtabcdef0123 has the address 169.254.3.4/16", RemedyManager)
	})
}

// TestHostUnseen: what cannot be read is not called good.
func TestHostUnseen(t *testing.T) {
	m := testMachine(t)
	m.inspect = func() (engine.HostView, error) { return engine.HostView{}, errors.New("no netlink") }
	for _, c := range []check{{"", checkMTU}, {"", checkRanges}, {"", checkTailscaled}, {"", checkManagers}, {"", checkLeftovers}} {
		expect(t, look(t, m, c.run), ResultUnknown, "no netlink", "")
	}
}

func TestCheckKernel(t *testing.T) {
	m := testMachine(t)
	expect(t, look(t, m, checkKernel), ResultOK, "Linux ", "")
	for release, want := range map[string]Finding{
		"4.19.0-27-amd64": fail("Linux 4.19", RemedyOldKernel),
		"3.10.0":          fail("Linux 3.10", RemedyOldKernel),
		"4.20.1":          fine("from 6.2 on"),
		"6.5.0":           fine("from 6.9 on"),
		"unknown":         unknown("not a number"),
	} {
		m.release = func() string { return release }
		expect(t, look(t, m, checkKernel), want.Result, want.Seen, want.Remedy)
	}
}

// TestCheckFeatures has this kernel try, and then each trial fail.
func TestCheckFeatures(t *testing.T) {
	m := testMachine(t)
	for _, f := range look(t, m, checkFeatures) {
		if f.Result != ResultOK {
			t.Errorf("this kernel: %+v", f)
		}
	}
	m.put(t, ipv6File, "")
	for trial, want := range map[string]Finding{
		engine.TrialNamespace: fail("", RemedyNamespaces),
		engine.TrialLink:      fail("", RemedyModules),
		engine.TrialSocket:    fail("", RemedyPacket),
		engine.TrialRules:     fail("", RemedyPolicyRouting),
		engine.TrialRules6:    fail("", RemedyPolicyRouting),
		engine.TrialNAT:       warn("", RemedyNAT),
		engine.TrialGSO:       warn("", RemedyOffload),
		engine.TrialGRO:       warn("", RemedyOffload),
	} {
		m.tryKernel = func() []engine.Trial { return []engine.Trial{{Name: trial, Err: unix.ENOENT}} }
		expect(t, look(t, m, checkFeatures), want.Result, trial+": no such file", want.Remedy)
	}
}

// TestRulesWithoutIPv6: a kernel that runs without it needs no rules for it.
func TestRulesWithoutIPv6(t *testing.T) {
	m := testMachine(t)
	m.tryKernel = func() []engine.Trial {
		return []engine.Trial{{Name: engine.TrialRules}, {Name: engine.TrialRules6, Err: unix.EAFNOSUPPORT}}
	}
	if got := look(t, m, checkFeatures); len(got) != 1 || got[0].Result != ResultOK {
		t.Errorf("got %+v", got)
	}
}

func TestCheckIPv6(t *testing.T) {
	m := testMachine(t)
	expect(t, look(t, m, checkIPv6), ResultWarn, "without IPv6", RemedyIPv6)
	m.put(t, "proc/net/if_inet6", "")
	expect(t, look(t, m, checkIPv6), ResultOK, "enabled", "")
	m.put(t, "proc/sys/net/ipv6/conf/all/disable_ipv6", "1\n")
	expect(t, look(t, m, checkIPv6), ResultWarn, "disable_ipv6 is 1", RemedyIPv6)
}

func TestCheckCapabilities(t *testing.T) {
	m := testMachine(t)
	expect(t, look(t, m, checkCapabilities), ResultUnknown, "no such file", "")
	m.put(t, "proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff\n")
	expect(t, look(t, m, checkCapabilities), ResultOK, "NET_BROADCAST", "")
	m.put(t, "proc/self/status", "Name:\tx\nCapEff:\t000001fffffff7ff\n") // without bit 11
	expect(t, look(t, m, checkCapabilities), ResultFail, "missing capabilities NET_BROADCAST", RemedyCapabilities)
}
