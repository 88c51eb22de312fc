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
	h := testHost(t)
	plugintest.InNetns(t, func() { expect(t, look(t, h, checkMTU), ResultUnknown, "no default route", "") })
	for mtu, want := range map[int][2]string{1360: {ResultOK, ResultOK}, 1359: {ResultOK, ResultWarn}, 1339: {ResultWarn, ResultWarn}} {
		plugintest.InNetns(t, func() {
			index := plugintest.AddLink(t, "up0", mtu, "192.0.2.1/24", "2001:db8::1/64")
			addRoute(t, index, unix.RT_TABLE_MAIN, "0.0.0.0/0")
			addRoute(t, index, unix.RT_TABLE_MAIN, "::/0")
			got := look(t, h, checkMTU)
			for i, need := range []int{1340, 1360} {
				remedy := ""
				if want[i] == ResultWarn {
					remedy = remedyMTU
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
		expect(t, look(t, testHost(t), checkRanges), ResultOK, "not in TS_CLUSTER_RANGES; addresses of Services are not seen", "")
		inPod := look(t, testHost(t, config.EnvServiceHost+"=10.43.0.1"), checkRanges)
		expect(t, inPod, ResultOK, "no address or route", "")
		if strings.Contains(inPod[0].Seen, "Services") {
			t.Errorf("got %+v", inPod)
		}
		expect(t, look(t, testHost(t, config.EnvServiceHost+"=100.70.0.1"), checkRanges), ResultWarn, "100.70.0.1/32 (KUBERNETES_SERVICE_HOST)", remedyServices)
		expect(t, look(t, testHost(t, config.EnvServiceHost+"=100.70.0.1", settings.ClusterRanges+"=100.70.0.0/16"), checkRanges), ResultOK, "no address or route", "")

		plugintest.AddLink(t, "join0", 1500, "100.64.0.2/16", "fd7a:115c:a1e0::2/64")
		addRoute(t, index, unix.RT_TABLE_MAIN, "100.80.0.7/32") // a pod's
		got := look(t, testHost(t), checkRanges)
		for _, seen := range []string{"100.64.0.2/16 (address on join0)", "fd7a:115c:a1e0::2/64 (address on join0)", "100.80.0.7/32 (route by cni0)"} {
			expect(t, got, ResultWarn, seen, remedyRanges)
		}
		named := testHost(t, settings.ClusterRanges+"=100.64.0.0/16,100.80.0.0/12,fd7a:115c:a1e0::/64")
		expect(t, look(t, named, checkRanges), ResultOK, "no address or route", "")
		expect(t, look(t, testHost(t, settings.ClusterRanges+"=100.64.0.0/10"), checkRanges), ResultWarn, "100.64.0.0/10", remedyRangesWhole)
	})
}

func TestCheckTailscaled(t *testing.T) {
	h := testHost(t)
	plugintest.InNetns(t, func() {
		expect(t, look(t, h, checkTailscaled), ResultOK, "none has an interface", "")
		index := plugintest.AddLink(t, "tailscale0", 1280, "100.100.1.1/32")
		expect(t, look(t, h, checkTailscaled), ResultOK, "without rules", "")
		rule := netlink.NewRule()
		rule.Priority, rule.Table = 5270, tailscaledTable
		plugintest.Must(t, netlink.RuleAdd(rule))
		addRoute(t, index, tailscaledTable, "100.100.2.2/32")
		expect(t, look(t, h, checkTailscaled), ResultOK, "with neither an exit node nor accepted routes", "")
		addRoute(t, index, tailscaledTable, "198.51.100.0/24")
		expect(t, look(t, h, checkTailscaled), ResultWarn, "accepted 1 routes (198.51.100.0/24)", remedyAccepted)
		addRoute(t, index, tailscaledTable, "0.0.0.0/0")
		expect(t, look(t, h, checkTailscaled), ResultWarn, "an exit node is set", remedyExitNode)
	})
}

func TestCheckManagers(t *testing.T) {
	h := testHost(t)
	plugintest.InNetns(t, func() {
		plugintest.AddLink(t, "vetheth0", 1500, "10.0.0.1/24") // somebody else's
		expect(t, look(t, h, checkManagers), ResultUnknown, "no link of a pod yet", "")
		index := plugintest.AddLink(t, "vetht0123456789", 1280)
		expect(t, look(t, h, checkManagers), ResultUnknown, "not visible from here", "")

		networkd := fmt.Sprintf("run/systemd/netif/links/%d", index)
		for _, state := range []string{"unmanaged", "pending"} {
			h.put(t, networkd, "# This is private data. Do not parse.\nADMIN_STATE="+state+"\nOPER_STATE=carrier\n")
			expect(t, look(t, h, checkManagers), ResultOK, "1 links, none managed", "")
		}
		h.put(t, networkd, "ADMIN_STATE=configuring\n")
		expect(t, look(t, h, checkManagers), ResultWarn, "managed by systemd-networkd (configuring)", remedyManager)

		h = testHost(t)
		nm := fmt.Sprintf("proc/1/root/run/NetworkManager/devices/%d", index)
		h.put(t, nm, "[device]\nmanaged=false\n")
		expect(t, look(t, h, checkManagers), ResultOK, "none managed", "")
		h.put(t, nm, "[device]\nmanaged=true\n")
		expect(t, look(t, h, checkManagers), ResultWarn, "managed by NetworkManager", remedyManager)

		plugintest.AddLink(t, "vethtabcdef0123", 1280, "169.254.3.4/16")
		expect(t, look(t, testHost(t), checkManagers), ResultWarn, "vethtabcdef0123 has the address 169.254.3.4/16", remedyManager)
	})
}

// TestHostUnseen: what cannot be read is not called good.
func TestHostUnseen(t *testing.T) {
	h := testHost(t)
	h.inspect = func() (engine.HostView, error) { return engine.HostView{}, errors.New("no netlink") }
	for _, c := range []check{{"", checkMTU}, {"", checkRanges}, {"", checkTailscaled}, {"", checkManagers}, {"", checkLeftovers}} {
		expect(t, look(t, h, c.run), ResultUnknown, "no netlink", "")
	}
}

func TestCheckKernel(t *testing.T) {
	h := testHost(t)
	expect(t, look(t, h, checkKernel), ResultOK, "Linux ", "")
	for release, want := range map[string]Finding{
		"4.19.0-27-amd64": fail("Linux 4.19", remedyOldKernel),
		"3.10.0":          fail("Linux 3.10", remedyOldKernel),
		"4.20.1":          fine("from 6.2 on"),
		"6.5.0":           fine("from 6.9 on"),
		"unknown":         unknown("not a number"),
	} {
		h.release = func() string { return release }
		expect(t, look(t, h, checkKernel), want.Result, want.Seen, want.Remedy)
	}
}

// TestCheckFeatures has this kernel try, and then each trial fail.
func TestCheckFeatures(t *testing.T) {
	h := testHost(t)
	for _, f := range look(t, h, checkFeatures) {
		if f.Result != ResultOK {
			t.Errorf("this kernel: %+v", f)
		}
	}
	h.put(t, ipv6File, "")
	for trial, want := range map[string]Finding{
		engine.TrialNamespace: fail("", RemedyNamespaces),
		engine.TrialLink:      fail("", remedyModules),
		engine.TrialSocket:    fail("", remedyPacket),
		engine.TrialRules:     fail("", remedyPolicyRouting),
		engine.TrialRules6:    fail("", remedyPolicyRouting),
		engine.TrialNAT:       warn("", remedyNAT),
		engine.TrialGSO:       warn("", remedyOffload),
		engine.TrialGRO:       warn("", remedyOffload),
	} {
		h.tryKernel = func() []engine.Trial { return []engine.Trial{{Name: trial, Err: unix.ENOENT}} }
		expect(t, look(t, h, checkFeatures), want.Result, trial+": no such file", want.Remedy)
	}
}

// TestRulesWithoutIPv6: a kernel that runs without it needs no rules for it.
func TestRulesWithoutIPv6(t *testing.T) {
	h := testHost(t)
	h.tryKernel = func() []engine.Trial {
		return []engine.Trial{{Name: engine.TrialRules}, {Name: engine.TrialRules6, Err: unix.EAFNOSUPPORT}}
	}
	if got := look(t, h, checkFeatures); len(got) != 1 || got[0].Result != ResultOK {
		t.Errorf("got %+v", got)
	}
}

func TestCheckIPv6(t *testing.T) {
	h := testHost(t)
	expect(t, look(t, h, checkIPv6), ResultWarn, "without IPv6", remedyIPv6)
	h.put(t, "proc/net/if_inet6", "")
	expect(t, look(t, h, checkIPv6), ResultOK, "enabled", "")
	h.put(t, "proc/sys/net/ipv6/conf/all/disable_ipv6", "1\n")
	expect(t, look(t, h, checkIPv6), ResultWarn, "disable_ipv6 is 1", remedyIPv6)
}

func TestCheckCapabilities(t *testing.T) {
	h := testHost(t)
	expect(t, look(t, h, checkCapabilities), ResultUnknown, "no such file", "")
	h.put(t, "proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff\n")
	expect(t, look(t, h, checkCapabilities), ResultOK, "NET_BROADCAST", "")
	h.put(t, "proc/self/status", "Name:\tx\nCapEff:\t000001fffffff7ff\n") // without bit 11
	expect(t, look(t, h, checkCapabilities), ResultFail, "missing capabilities NET_BROADCAST", RemedyCapabilities)
}
