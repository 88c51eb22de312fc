#!/usr/bin/env bash
# getqdisc-tells-listeners: to whom the kernel answers RTM_GETQDISC.
#
# github.com/vishvananda/netlink v1.3.1 on Linux 6.18; the root qdisc of a veth in a namespace of its own.
# Guess: RTM_GETQDISC of one interface is answered as RTM_GETLINK is, to who asks and to nobody else.
# Seen:  it is answered with success and nothing else. What was asked for goes to the listeners of RTNLGRP_TC, as
#   RTM_NEWQDISC, as if the qdisc had just been made. With NLM_F_ECHO, meant for changes, who asks gets it too.
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
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "a"
	must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "b"}))
	link, err := netlink.LinkByName("a")
	must(err)
	must(netlink.QdiscAdd(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_ROOT}, QdiscType: "blackhole",
	}))
	listener, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_TC)
	must(err)
	for _, tt := range []struct {
		name  string
		flags int
	}{{"RTM_GETQDISC", 0}, {"RTM_GETQDISC with NLM_F_ECHO", unix.NLM_F_ECHO}} {
		req := nl.NewNetlinkRequest(unix.RTM_GETQDISC, unix.NLM_F_ACK|tt.flags)
		req.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(link.Attrs().Index), Parent: netlink.HANDLE_ROOT})
		answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWQDISC)
		must(err)
		heard := 0
		for buf := make([]byte, 64<<10); ; heard++ {
			if _, _, err := unix.Recvfrom(listener.GetFd(), buf, unix.MSG_DONTWAIT); errors.Is(err, unix.EAGAIN) {
				break
			} else {
				must(err)
			}
		}
		fmt.Printf("%s: %d to who asks, %d to listeners\n", tt.name, len(answers), heard)
	}
}
END

cat >want <<'END'
RTM_GETQDISC: 0 to who asks, 1 to listeners
RTM_GETQDISC with NLM_F_ECHO: 1 to who asks, 1 to listeners
END

go build -o finding .
unshare -n ./finding >seen
cat seen
diff -u want seen || { echo "getqdisc-tells-listeners: it has changed" >&2; exit 1; }
