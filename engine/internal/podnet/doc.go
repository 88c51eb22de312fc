// SPDX-License-Identifier: BSD-3-Clause

// Package podnet is the kernel side of a pod's tailnet node, and nothing but
// the kernel.
//
//	pod's netns                │  this process's netns
//	                           │
//	ts0   100.x/32  fd7a::/128 │  vetht…        no address, no route
//	      MTU 1280  NOARP  ════╪════ veth       tc ingress and egress: drop
//	                           │        │
//	                           │     packet socket (Device, a tun.Device)
//
// [Ensure] makes the link, or adopts the one that an earlier process left, and [Begin] makes
// as much of a new pod's as has nobody wait. [Link.Open]
// returns its host end as a [Device] that a WireGuard engine reads and writes, in
// super-packets of up to 64 KB. [Device.Divert] hands those for another pod of the host
// to that pod's Device. [Link.Router] programs addresses and routes on ts0, and rules
// that lead to them. [Remove] takes the link away. [Watch] hears of changes that others
// make to either, for Restore to undo them. [Router.Fence] closes a pod that is to reach
// everything by an exit node, until it can, and [Router.Forward] makes a pod a router for
// its peers, in its own netns. [EnsureDNS] and [OpenDNS] have the pod's DNS answered by
// this process while it lives.
//
// The link outlives the process: a new process opens a new packet socket on
// it, and ts0 keeps its addresses, its routes and the pod's connections.
//
// A pod's netns is named by a [Namespace]: paths and an inode number. It is
// opened for one operation, compared with its inode, and closed again, for two
// reasons. An open descriptor keeps a dead pod's netns alive, and with it
// the link, whose end tells us of the pod's. And a descriptor number that
// was closed and used again would silently point at another pod. [DNS] and [Tap]
// are the exceptions. The sockets of a DNS keep the netns alive anyway, and it knows
// when nothing else does. The owner of a Tap checks whether the pod has ended.
//
// What this package does not do: it knows no pods, no tailnet and no
// container runtime. From one call to the next it keeps only what the kernel was found to
// support. Two kinds of its goroutines outlive a call: threads that open sockets in
// pods, for ten seconds after the last, and the one of [Watch.HearFilters] (Watch.Run
// is the caller's). It changes no route, rule, sysctl or firewall of its own netns. It
// never enters a netns with a thread that anything else will use.
package podnet
