// SPDX-License-Identifier: BSD-3-Clause

// Package bench measures the plugin on the lab, next to stock tailscaleds of the same version in the same run.
//
//	attach    hook time; from the sandbox to the first answered ping, one by one and in a burst
//	traffic   throughput, CPU time, small packets and latency of pods and of stock tailscaleds, in turns
//	recovery  memory before, and for two minutes after, a minute of iperf3
//	memory    resident memory by number of pods, where all see each other and where none does, there with names and the
//	          socket too; CPU time when idle; how long the status takes, without and with a session of each pod's
//	scrape    CPU time when metrics are served to nobody; time, size, allocations and CPU time of a scrape
//
// # What is compared with what
//
//	pods    pod ── plugin ─┐ host0's eth0 ── lab0 ── eth0 of host1 ┌─ plugin ── pod
//	stock   tailscaled ────┘  a netns' eth0 ── lab0 ── eth0        └──── tailscaled
//	local   two pods of host0: one plugin, whose datagrams take the loopback
//
// The two pods are on two hosts of the lab, each with a containerd and a plugin process of its own. Their datagrams
// leave from the plugin's socket in the host's network namespace, and cross the veth of one host, the bridge, and the
// veth of the other. The two stock tailscaleds, in kernel mode, stand in two network namespaces on the same bridge by
// the same kind of veth. So both pairs have the same link, and what differs is the daemon and its device: a veth with a
// packet socket, or a TUN device. A sidecar's datagrams would cross a pod's veth and the host's forwarding in addition,
// which the plugin's never do; that advantage is left out here, as it belongs to the cluster's CNI.
//
// Traffic goes through iperf3, by nsenter. A small packet has 64 bytes of payload; its rate is the highest that loses
// 0.1 % at most, found by halving. Latency is one byte to an echo and back, one at a time; that is labtool's, since iperf3
// has no requests and answers.
//
// # Output
//
// The figures are printed and written to bench.json, one JSON object in a line. Every single measurement goes to
// bench.txt in Go's benchmark format: "benchstat -col /of bench.txt" has medians, spread and comparison, and
// "benchstat old.txt new.txt" compares two runs.
//
// Read ratios, not values: the lab's traffic crosses one machine, whose cores run both ends, both daemons and whatever
// else runs there. A ratio is that of two medians; its low and high are those of single rounds, in which the rivals
// took turns.
//
// # Profiles
//
// A plugin that was built with the tag "profile" (make profile) serves net/http/pprof on a unix socket below
// /run/tailscale-nri of its host, so a profile can be taken of any run; "lab bench -profiles DIR -plugin
// .build/bench/profile" takes those of the CPU during traffic and of the heap. The product has no such thing.
//
// The package holds no figure against a limit and does not fail for a slow machine; it does not build anything, and it
// never runs against a tailnet other than the lab's.
package bench
