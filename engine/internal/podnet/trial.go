// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Trial is a requirement on the kernel, and the result of its test.
type Trial struct {
	Name string
	Err  error
}

// The names of [TryKernel]'s trials.
const (
	TrialNamespace = "network namespaces"
	TrialLink      = "veth with its tc filter and qdisc"
	TrialSocket    = "packet socket with offloads"
	TrialRules     = "policy routing for IPv4"
	TrialRules6    = "policy routing for IPv6"
	TrialNAT       = "nftables NAT"
	TrialGSO       = "UDP segmentation offload (UDP_SEGMENT)"
	TrialGRO       = "UDP receive offload (UDP_GRO)"
)

// TryKernel does what is done for a pod, by the same functions, between two network
// namespaces that it makes for that and that end with it. Trials that need an earlier
// one that failed are left out.
//
// It is not visible in this process's netns. The kernel may load modules for it.
func TryKernel() []Trial {
	trials := []Trial{
		{TrialGSO, tryUDP(unix.UDP_SEGMENT, MTU)},
		{TrialGRO, tryUDP(unix.UDP_GRO, 1)},
	}
	done := make(chan []Trial)
	go onSpareThread(func() { done <- tryLink() })
	return append(trials, <-done...)
}

// tryUDP sets an option on a UDP socket.
func tryUDP(option, value int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening a UDP socket: %w", err)
	}
	defer unix.Close(fd)
	return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, option, value)
}

// tryLink leaves the calling thread in a netns of its own.
func tryLink() (trials []Trial) {
	pod, err := netns.New()
	if err != nil {
		return []Trial{{TrialNamespace, err}}
	}
	defer pod.Close()
	host, err := netns.New()
	if err != nil {
		return []Trial{{TrialNamespace, err}}
	}
	defer host.Close()
	ns, err := FindNamespace(fmt.Sprintf("/proc/self/fd/%d", int(pod)))
	trials = append(trials, Trial{TrialNamespace, err})
	if err != nil {
		return trials
	}
	link, err := Ensure(ns, HostLink("trial"), nil)
	trials = append(trials, Trial{TrialLink, err})
	if err == nil {
		device, err := link.Open(NoStore{})
		if err == nil {
			err = device.Close()
		}
		trials = append(trials, Trial{TrialSocket, err})
	}
	for _, t := range []struct{ name, addr string }{{TrialRules, "100.64.0.9/32"}, {TrialRules6, "fd7a:115c:a1e0::9/128"}} {
		err := ns.withHandle(func(h *netlink.Handle) error {
			_, err := setRules(h, wantedRules([]netip.Prefix{netip.MustParsePrefix(t.addr)}, false))
			return err
		})
		trials = append(trials, Trial{t.name, err})
	}
	return append(trials, Trial{TrialNAT, tryNAT()})
}

// tryNAT makes a chain of nftables that translates sources, in this thread's netns.
func tryNAT() error {
	nft, err := openNft(netns.None())
	if err != nil {
		return err
	}
	defer nft.Close()
	t := &rawTable{family: unix.NFPROTO_IPV4, name: "trial", chains: []rawChain{
		{name: "postrouting", kind: "nat", hook: unix.NF_INET_POST_ROUTING, priority: nftSrcNAT},
	}}
	return nft.run(func(b *rawBatch) {
		b.makeTable(t)
		b.fillTable(t)
	})
}
