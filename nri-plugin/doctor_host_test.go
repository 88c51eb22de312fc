// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/settings"
)

// inNetns runs f on a thread in a network namespace of its own, which ends with it.
func inNetns(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		ns, err := netns.New()
		if err == nil {
			defer ns.Close()
			defer func() { done <- nil }()
			f()
			return
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// addLink makes an interface that is up, a tun or one end of a veth, in this thread's
// namespace.
func addLink(t *testing.T, name string, mtu int, addrs ...string) (index int) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	var link netlink.Link = &netlink.Veth{LinkAttrs: attrs, PeerName: "p" + name[max(0, len(name)-10):]}
	if name == "tailscale0" {
		link = &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TUN}
	}
	must(t, netlink.LinkAdd(link))
	link, err := netlink.LinkByName(name)
	must(t, err)
	must(t, netlink.LinkSetIP6AddrGenMode(link, 1)) // none
	must(t, netlink.LinkSetUp(link))
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		must(t, err)
		addr.Flags = unix.IFA_F_NODAD
		must(t, netlink.AddrAdd(link, addr))
	}
	return link.Attrs().Index
}

func addRoute(t *testing.T, index, table int, dst string) {
	t.Helper()
	p := netip.MustParsePrefix(dst)
	must(t, netlink.RouteAdd(&netlink.Route{
		LinkIndex: index, Table: table, Scope: netlink.SCOPE_LINK,
		Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
	}))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err) // not the test's goroutine
		runtime.Goexit()
	}
}

func TestCheckMTU(t *testing.T) {
	m := testMachine(t)
	inNetns(t, func() { expect(t, look(t, m, checkMTU), resultUnknown, "no default route", "") })
	for mtu, want := range map[int][2]string{1360: {resultOK, resultOK}, 1359: {resultOK, resultWarn}, 1339: {resultWarn, resultWarn}} {
		inNetns(t, func() {
			index := addLink(t, "up0", mtu, "192.0.2.1/24", "2001:db8::1/64")
			addRoute(t, index, unix.RT_TABLE_MAIN, "0.0.0.0/0")
			addRoute(t, index, unix.RT_TABLE_MAIN, "::/0")
			got := look(t, m, checkMTU)
			for i, need := range []int{1340, 1360} {
				remedy := ""
				if want[i] == resultWarn {
					remedy = remedyMTU
				}
				expect(t, got, want[i], fmt.Sprintf("leaves by up0, MTU %d; a full packet of ts0 takes %d", mtu, need), remedy)
			}
		})
	}
}

func TestCheckRanges(t *testing.T) {
	inNetns(t, func() {
		addLink(t, "tailscale0", 1280, "100.100.1.1/32")
		index := addLink(t, "cni0", 1500, "10.42.0.1/24")
		expect(t, look(t, testMachine(t), checkRanges), resultOK, "not in TS_CLUSTER_RANGES; addresses of Services are not seen", "")
		inPod := look(t, testMachine(t, config.EnvServiceHost+"=10.43.0.1"), checkRanges)
		expect(t, inPod, resultOK, "no address or route", "")
		if strings.Contains(inPod[0].Seen, "Services") {
			t.Errorf("got %+v", inPod)
		}
		expect(t, look(t, testMachine(t, config.EnvServiceHost+"=100.70.0.1"), checkRanges), resultWarn, "100.70.0.1/32 (KUBERNETES_SERVICE_HOST)", remedyRanges)

		addLink(t, "join0", 1500, "100.64.0.2/16", "fd7a:115c:a1e0::2/64")
		addRoute(t, index, unix.RT_TABLE_MAIN, "100.80.0.7/32") // a pod's
		got := look(t, testMachine(t), checkRanges)
		for _, seen := range []string{"100.64.0.2/16 (address on join0)", "fd7a:115c:a1e0::2/64 (address on join0)", "100.80.0.7/32 (route by cni0)"} {
			expect(t, got, resultWarn, seen, remedyRanges)
		}
		named := testMachine(t, settings.ClusterRanges+"=100.64.0.0/16,100.80.0.0/12,fd7a:115c:a1e0::/64")
		expect(t, look(t, named, checkRanges), resultOK, "no address or route", "")
		expect(t, look(t, testMachine(t, settings.ClusterRanges+"=100.64.0.0/10"), checkRanges), resultWarn, "100.64.0.0/10", remedyRangesWhole)
	})
}

func TestCheckTailscaled(t *testing.T) {
	m := testMachine(t)
	inNetns(t, func() {
		expect(t, look(t, m, checkTailscaled), resultOK, "none has an interface", "")
		index := addLink(t, "tailscale0", 1280, "100.100.1.1/32")
		expect(t, look(t, m, checkTailscaled), resultOK, "without rules", "")
		rule := netlink.NewRule()
		rule.Priority, rule.Table = 5270, tailscaledTable
		must(t, netlink.RuleAdd(rule))
		addRoute(t, index, tailscaledTable, "100.100.2.2/32")
		expect(t, look(t, m, checkTailscaled), resultOK, "with neither an exit node nor accepted routes", "")
		addRoute(t, index, tailscaledTable, "198.51.100.0/24")
		expect(t, look(t, m, checkTailscaled), resultWarn, "accepted 1 routes (198.51.100.0/24)", remedyAccepted)
		addRoute(t, index, tailscaledTable, "0.0.0.0/0")
		expect(t, look(t, m, checkTailscaled), resultWarn, "an exit node is set", remedyExitNode)
	})
}

func TestCheckManagers(t *testing.T) {
	m := testMachine(t)
	inNetns(t, func() {
		addLink(t, "vetheth0", 1500, "10.0.0.1/24") // somebody else's
		expect(t, look(t, m, checkManagers), resultUnknown, "no link of a pod yet", "")
		index := addLink(t, "vetht0123456789", 1280)
		expect(t, look(t, m, checkManagers), resultUnknown, "not visible from here", "")

		networkd := fmt.Sprintf("run/systemd/netif/links/%d", index)
		for _, state := range []string{"unmanaged", "pending"} {
			m.put(t, networkd, "# This is private data. Do not parse.\nADMIN_STATE="+state+"\nOPER_STATE=carrier\n")
			expect(t, look(t, m, checkManagers), resultOK, "1 links, none managed", "")
		}
		m.put(t, networkd, "ADMIN_STATE=configuring\n")
		expect(t, look(t, m, checkManagers), resultWarn, "managed by systemd-networkd (configuring)", remedyManager)

		m = testMachine(t)
		nm := fmt.Sprintf("proc/1/root/run/NetworkManager/devices/%d", index)
		m.put(t, nm, "[device]\nmanaged=false\n")
		expect(t, look(t, m, checkManagers), resultOK, "none managed", "")
		m.put(t, nm, "[device]\nmanaged=true\n")
		expect(t, look(t, m, checkManagers), resultWarn, "managed by NetworkManager", remedyManager)

		addLink(t, "vethtabcdef0123", 1280, "169.254.3.4/16")
		expect(t, look(t, testMachine(t), checkManagers), resultWarn, "vethtabcdef0123 has the address 169.254.3.4/16", remedyManager)
	})
}

// TestHostUnseen: what cannot be read is not called good.
func TestHostUnseen(t *testing.T) {
	m := testMachine(t)
	m.inspect = func() (engine.HostView, error) { return engine.HostView{}, errors.New("no netlink") }
	for _, c := range []check{{"", checkMTU}, {"", checkRanges}, {"", checkTailscaled}, {"", checkManagers}, {"", checkLeftovers}} {
		expect(t, look(t, m, c.run), resultUnknown, "no netlink", "")
	}
}

func TestCheckKernel(t *testing.T) {
	m := testMachine(t)
	expect(t, look(t, m, checkKernel), resultOK, "Linux ", "")
	for release, want := range map[string]finding{
		"4.19.0-27-amd64": fail("Linux 4.19", remedyOldKernel),
		"3.10.0":          fail("Linux 3.10", remedyOldKernel),
		"4.20.1":          fine("from 6.2 on"),
		"6.5.0":           fine("from 6.9 on"),
		"unknown":         unknown("no number"),
	} {
		m.release = func() string { return release }
		expect(t, look(t, m, checkKernel), want.Result, want.Seen, want.Remedy)
	}
}

// TestCheckFeatures has this kernel try, and then each trial fail.
func TestCheckFeatures(t *testing.T) {
	m := testMachine(t)
	for _, f := range look(t, m, checkFeatures) {
		if f.Result != resultOK {
			t.Errorf("this kernel: %+v", f)
		}
	}
	m.put(t, ipv6File, "")
	for trial, want := range map[string]finding{
		engine.TrialNamespace: fail("", remedyNamespaces),
		engine.TrialLink:      fail("", remedyModules),
		engine.TrialSocket:    fail("", remedyPacket),
		engine.TrialRules:     fail("", remedyPolicyRouting),
		engine.TrialRules6:    fail("", remedyPolicyRouting),
		engine.TrialNAT:       warn("", remedyNAT),
		engine.TrialGSO:       warn("", remedyOffload),
		engine.TrialGRO:       warn("", remedyOffload),
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
	if got := look(t, m, checkFeatures); len(got) != 1 || got[0].Result != resultOK {
		t.Errorf("got %+v", got)
	}
}

func TestCheckIPv6(t *testing.T) {
	m := testMachine(t)
	expect(t, look(t, m, checkIPv6), resultWarn, "without IPv6", remedyIPv6)
	m.put(t, "proc/net/if_inet6", "")
	expect(t, look(t, m, checkIPv6), resultOK, "enabled", "")
	m.put(t, "proc/sys/net/ipv6/conf/all/disable_ipv6", "1\n")
	expect(t, look(t, m, checkIPv6), resultWarn, "disable_ipv6 is 1", remedyIPv6)
}

func TestCheckCapabilities(t *testing.T) {
	m := testMachine(t)
	expect(t, look(t, m, checkCapabilities), resultUnknown, "no such file", "")
	m.put(t, "proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff\n")
	expect(t, look(t, m, checkCapabilities), resultOK, "NET_BROADCAST", "")
	m.put(t, "proc/self/status", "Name:\tx\nCapEff:\t000001fffffff7ff\n") // without bit 11
	expect(t, look(t, m, checkCapabilities), resultFail, "missing capabilities NET_BROADCAST", remedyCapabilities)
}
