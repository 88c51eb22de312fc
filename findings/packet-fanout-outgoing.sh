#!/usr/bin/env bash
# packet-fanout-outgoing: what PACKET_IGNORE_OUTGOING still does when packet sockets share an interface's traffic.
#
# Linux 6.18, AF_PACKET on one end of a veth; golang.org/x/sys v0.49.0, github.com/vishvananda/netlink v1.3.1.
# Guess: a socket that does not want what its interface sends does not get it in a PACKET_FANOUT group either.
# Seen:  it gets it, though getsockopt goes on saying that it is ignored. The group hears for its members. It hears all
#   unless the member that makes it adds PACKET_FANOUT_FLAG_IGNORE_OUTGOING (0x4000, not in x/sys), which each later
#   member must give as well. A program that reads and writes on one interface hears its own packets; of the fields of
#   their addresses only sll_pkttype tells them from those that came in.
# Exits 1 if that has changed. Needs root, Go 1.21 or later and the module proxy. It acts in a netns of its own.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
export GOTOOLCHAIN=go1.27.4 GOWORK=off GOFLAGS=-mod=mod

cat >go.mod <<'END'
module finding

go 1.25.0

require (
	github.com/vishvananda/netlink v1.3.1
	golang.org/x/sys v0.49.0
)
END

cat >main.go <<'END'
package main

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// Both in network order, on a little-endian machine; nothing else in the netns sends the second.
const all, ours = unix.ETH_P_ALL << 8, 0xb588

// open takes all that an interface sends and gets.
func open(link netlink.Link, ignore bool) int {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK, 0)
	must(err)
	if ignore {
		must(unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1))
	}
	must(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index}))
	return fd
}

// drain counts the packets of ours that a socket has heard, by direction.
func drain(fd int) (out, in int) {
	for buf := make([]byte, 2000); ; {
		_, from, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return out, in
		}
		if at := from.(*unix.SockaddrLinklayer); at.Protocol == ours && at.Pkttype == unix.PACKET_OUTGOING {
			out++
		} else if at.Protocol == ours {
			in++
		}
	}
}

func main() {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "here"
	must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "there"}))
	up := func(name string) netlink.Link {
		link, err := netlink.LinkByName(name)
		must(err)
		must(netlink.LinkSetUp(link))
		return link
	}
	here, there := up("here"), up("there")
	frame := make([]byte, 142)
	copy(frame, here.Attrs().HardwareAddr)
	frame[12], frame[13] = 0x88, 0xb5
	senders := []int{open(here, false), open(there, false)}
	cross := func() { // a veth delivers before write returns, or soon after
		for i := range 20 {
			_, err := unix.Write(senders[i%2], frame)
			must(err)
		}
		unix.Nanosleep(&unix.Timespec{Nsec: 100e6}, nil)
	}
	alone := open(here, true)
	cross()
	out, in := drain(alone)
	fmt.Printf("alone: sent %d, got %d\n", out, in)
	for id, flag := range []int{0, 0x4000} {
		fd := open(here, true)
		must(unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_FANOUT, id|(unix.PACKET_FANOUT_LB|flag)<<16))
		cross()
		out, in := drain(fd)
		ignores, err := unix.GetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING)
		must(err)
		fmt.Printf("in a group with flag %#x: sent %d, got %d, ignores: %d\n", flag, out, in, ignores)
	}
}
END
cat >want <<'END'
alone: sent 0, got 10
in a group with flag 0x0: sent 10, got 10, ignores: 1
in a group with flag 0x4000: sent 0, got 10, ignores: 1
END

go build -o finding .
unshare -n ./finding >seen
cat seen
diff -u want seen || { echo "packet-fanout-outgoing: it has changed" >&2; exit 1; }
