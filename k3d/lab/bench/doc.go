// SPDX-License-Identifier: BSD-3-Clause

// Package bench measures the plugin on the lab, next to a stock tailscaled in the same run.
//
//	attach   hook time; from the sandbox to the first answered ping, one by one and in a burst
//	memory   resident memory by number of pods, and what the build tags save
//	traffic  throughput, loss and CPU time of two pods, and of two stock tailscaleds, in turns
//
// What is measured is measured from outside: by clock, by /proc, by what labtool has received. The hook's own time
// alone is the plugin's word, from its debug log.
//
// Read ratios, not figures: the lab's traffic crosses one machine, whose cores run both ends, both nodes and whatever
// else runs there. Each figure comes with its smallest and largest value.
//
// The package holds no figure against a limit and does not fail for a slow machine; it does not build anything, and it
// never runs against a tailnet other than the lab's.
package bench
