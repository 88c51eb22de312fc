#!/usr/bin/env bash
# cadvisor-interface-names: which interfaces of a network namespace cAdvisor, and with it the kubelet, has counters of.
#
# github.com/google/cadvisor/lib v0.60.5, container/libcontainer, on Linux 6.18; interfaces made with
#   github.com/vishvananda/netlink v1.3.1.
# Guess: the loopback interface, docker0 and veth pairs are left out, by what they are.
# Seen:  they are left out by the beginning of their names, in small or capital letters, whatever they are: "lo" leaves
#   out lowpan0 and lora0 as well, and those have neither series nor a part in any total. A veth of another name is
#   counted, as on hosts of Calico, Cilium and OVN-Kubernetes, and so is a bridge that Docker made for a network (br-…).
#   Nothing says that an interface was left out.
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
	github.com/google/cadvisor/lib v0.60.5
	github.com/opencontainers/cgroups v0.0.6
	github.com/vishvananda/netlink v1.3.1
)
END

cat >main.go <<'END'
package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/cadvisor/lib/container"
	"github.com/google/cadvisor/lib/container/libcontainer"
	"github.com/opencontainers/cgroups"
	"github.com/vishvananda/netlink"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// noCgroup has no figures: only the network's are asked for.
type noCgroup struct{ cgroups.Manager }

func (noCgroup) GetStats() (*cgroups.Stats, error) { return cgroups.NewStats(), nil }
func (noCgroup) Path(string) string                { return "/nowhere" }

func main() {
	pairs := []string{"eth0", "lowpan0", "lora0", "veth1a2b3c4d", "VETH0", "cali1a2b3c4d5e6", "lxc1a2b3c4d5e6f", "1a2b3c4d5e6f7a8"}
	bridges := []string{"docker0", "br-1a2b3c4d5e6f"}
	for i, name := range pairs {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: fmt.Sprint("vethpeer", i)}))
	}
	for _, name := range bridges {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		must(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	}
	want := container.MetricSet{container.NetworkUsageMetrics: struct{}{}}
	stats, err := libcontainer.NewHandler(noCgroup{}, "/", os.Getpid(), want).GetStats()
	must(err)
	var seen, left []string
	for _, i := range stats.Network.Interfaces {
		seen = append(seen, i.Name)
	}
	for _, name := range append(append([]string{"lo"}, pairs...), bridges...) {
		if !slices.Contains(seen, name) {
			left = append(left, name)
		}
	}
	slices.Sort(seen)
	slices.Sort(left)
	fmt.Println("counted:", strings.Join(seen, " "))
	fmt.Println("left out:", strings.Join(left, " "))
}
END

cat >want <<'END'
counted: 1a2b3c4d5e6f7a8 br-1a2b3c4d5e6f cali1a2b3c4d5e6 eth0 lxc1a2b3c4d5e6f
left out: VETH0 docker0 lo lora0 lowpan0 veth1a2b3c4d
END

go build -o finding .
unshare -n ./finding >seen
cat seen
diff -u want seen || { echo "cadvisor-interface-names: it has changed" >&2; exit 1; }
