#!/usr/bin/env bash
# rule-delete-takes-the-first: which routing rule goes when a library deletes the one that it has made.
#
# Linux 6.18; github.com/vishvananda/netlink v1.3.1.
# Guess: RuleDel takes the rule with these attributes, so it deletes "from all lookup 77" or nothing.
# Seen:  RTM_DELRULE compares what the message names and nothing else. A rule without a source names none, and takes the
#   first rule by priority with its table, whatever its source: here another program's rule. With the priority in the
#   message it takes the right one. The library's Rule has priority -1 unless it is set, which it leaves out.
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

	"github.com/vishvananda/netlink"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

const table = 77

// rule is one that looks a source, or any for nil, up in the table.
func rule(source net.IP, priority int) *netlink.Rule {
	r := netlink.NewRule()
	r.Table, r.Priority = table, priority
	if source != nil {
		r.Src = &net.IPNet{IP: source, Mask: net.CIDRMask(32, 32)}
	}
	return r
}

func show(when string) {
	rules, err := netlink.RuleListFiltered(netlink.FAMILY_V4, &netlink.Rule{Table: table}, netlink.RT_FILTER_TABLE)
	must(err)
	fmt.Print(when, ":")
	for _, r := range rules {
		fmt.Print(" ", r.Priority)
	}
	fmt.Println()
}

func main() {
	other := net.IPv4(192, 0, 2, 1)
	must(netlink.RuleAdd(rule(other, 100)))
	must(netlink.RuleAdd(rule(nil, 200)))
	show("two rules")
	must(netlink.RuleDel(rule(nil, -1)))
	show("one without a source was deleted")
	must(netlink.RuleAdd(rule(other, 100)))
	must(netlink.RuleDel(rule(nil, 200)))
	show("again, with its priority")
}
END
go mod tidy >/dev/null 2>&1
go build -o finding .
unshare --net ./finding | tee seen

diff - seen <<'END' || { echo "this has changed (kernel $(uname -r))"; exit 1; }
two rules: 100 200
one without a source was deleted: 200
again, with its priority: 100
END
