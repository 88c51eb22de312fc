#!/usr/bin/env bash
# netlink-answers-kept: how much memory a link or an address holds that was read from the kernel.
#
# Go 1.27.4's package net, and github.com/vishvananda/netlink v1.3.1, on Linux 6.18; a namespace of 100 veth pairs with
#   an IPv4 address each.
# Guess: a net.Interface, a netlink.Link or a netlink.Addr holds its own few hundred bytes, whatever else was listed.
# Seen:  the hardware address of what net.Interfaces returns is a slice of the kernel's whole answer: that of the first
#   link holds the messages of all others, 344 KB here, for as long as it lives. An address from net.InterfaceAddrs is a
#   copy. The addresses that netlink returns are slices of the datagram that they came in, 3 KB. A program that keeps
#   one link of each listing, its default interface for one, keeps all of them.
# Exits 1 if that has changed. Needs root, Go 1.21 or later and the module proxy. It acts in a netns of its own.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
export GOTOOLCHAIN=go1.27.4 GOWORK=off GOFLAGS=-mod=mod

cat >go.mod <<'END'
module finding

go 1.25.0

require github.com/vishvananda/netlink v1.3.1
END

cat >main.go <<'END'
package main

import (
	"fmt"
	"net"
	"runtime"

	"github.com/vishvananda/netlink"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// held is by how much the heap grows for each result that lives.
func held(list func() any) string {
	const calls = 20
	var before, after runtime.MemStats
	kept := make([]any, calls)
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range kept {
		kept[i] = list()
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(kept)
	switch kb := (int(after.HeapAlloc) - int(before.HeapAlloc)) / calls >> 10; {
	case kb > 100:
		return "more than 100 KB"
	case kb > 0:
		return "some KB"
	}
	return "less than 1 KB"
}

func main() {
	for i := range 100 {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = fmt.Sprint("a", i)
		must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: fmt.Sprint("b", i)}))
		link, err := netlink.LinkByName(attrs.Name)
		must(err)
		addr, err := netlink.ParseAddr(fmt.Sprintf("192.0.2.%d/32", i+1))
		must(err)
		must(netlink.AddrAdd(link, addr))
	}
	const first = 1 // lo is 0, and has no hardware address
	fmt.Println("held by one hardware address of net.Interfaces:", held(func() any {
		links, err := net.Interfaces()
		must(err)
		return links[first].HardwareAddr
	}))
	fmt.Println("held by one address of net.InterfaceAddrs:", held(func() any {
		addrs, err := net.InterfaceAddrs()
		must(err)
		return addrs[first]
	}))
	fmt.Println("held by one hardware address of netlink.LinkList:", held(func() any {
		links, err := netlink.LinkList()
		must(err)
		return links[first].Attrs().HardwareAddr
	}))
	fmt.Println("held by one address of netlink.AddrList:", held(func() any {
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		must(err)
		return addrs[first].IP
	}))
}
END

cat >want <<'END'
held by one hardware address of net.Interfaces: more than 100 KB
held by one address of net.InterfaceAddrs: less than 1 KB
held by one hardware address of netlink.LinkList: some KB
held by one address of netlink.AddrList: some KB
END

go build -o finding .
unshare -n ./finding >seen
cat seen
diff -u want seen || { echo "netlink-answers-kept: it has changed" >&2; exit 1; }
