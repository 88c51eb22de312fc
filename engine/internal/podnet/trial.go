// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Trial is one thing that is needed of the kernel, and what came of it.
type Trial struct {
	Name string
	Err  error
}

// What [TryKernel] tries.
const (
	TrialNamespace = "network namespaces"
	TrialLink      = "veth with its tc filters"
	TrialSocket    = "packet socket with offloads"
	TrialRules     = "policy routing for IPv4"
	TrialRules6    = "policy routing for IPv6"
	TrialNAT       = "nftables NAT"
	TrialGSO       = "UDP segmentation offload (UDP_SEGMENT)"
	TrialGRO       = "UDP receive offload (UDP_GRO)"
)

// TryKernel does what is done for a pod, by the same functions, between two network
// namespaces that it makes for that and that end with it. What cannot be tried
// since an earlier trial failed is left out.
//
// Nothing of it is seen in this process's netns. The kernel may load modules for it.
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

// tryLink leaves the thread in a netns of its own.
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
	link, err := Ensure(ns, HostLink("trial"))
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
	const (
		table, chain  = "trial", "postrouting"
		postrouting   = 4   // NF_INET_POST_ROUTING, linux/netfilter.h
		sourceNAT     = 100 // NF_IP_PRI_NAT_SRC, linux/netfilter_ipv4.h
		end           = unix.NFNL_MSG_BATCH_BEGIN + 1
		ackedMessages = 2
	)
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("opening a socket to netfilter: %w", err)
	}
	defer unix.Close(fd)
	hook := nfAttr(nil, unix.NFTA_HOOK_HOOKNUM, []byte{0, 0, 0, postrouting})
	hook = nfAttr(hook, unix.NFTA_HOOK_PRIORITY, []byte{0, 0, 0, sourceNAT})
	newTable := nfAttr(nil, unix.NFTA_TABLE_NAME, text0(table))
	newChain := nfAttr(nil, unix.NFTA_CHAIN_TABLE, text0(table))
	newChain = nfAttr(newChain, unix.NFTA_CHAIN_NAME, text0(chain))
	newChain = nfAttr(newChain, unix.NFTA_CHAIN_HOOK|unix.NLA_F_NESTED, hook)
	newChain = nfAttr(newChain, unix.NFTA_CHAIN_TYPE, text0("nat"))
	const create = unix.NLM_F_CREATE | unix.NLM_F_ACK
	batch := nfMessage(nil, unix.NFNL_MSG_BATCH_BEGIN, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, 0, nil)
	batch = nfMessage(batch, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, unix.AF_INET, 0, create, newTable)
	batch = nfMessage(batch, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWCHAIN, unix.AF_INET, 0, create, newChain)
	batch = nfMessage(batch, end, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, 0, nil)
	patience := unix.Timeval{Sec: 2}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return fmt.Errorf("bounding the wait for netfilter: %w", err)
	}
	if err := unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("asking netfilter: %w", err)
	}
	for range ackedMessages {
		if err := nfAnswer(fd); err != nil {
			return err
		}
	}
	return nil
}
