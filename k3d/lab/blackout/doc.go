// SPDX-License-Identifier: BSD-3-Clause

// Package blackout measures for how long a pod's traffic falls silent when the processes around it are restarted, next
// to stock tailscaleds that are restarted in the same way, in turns with it.
//
//	        lab of ours                          lab of the stock ones
//	peer ──┬── pod 1 … pod N               peer ──┬── tailscaled 1 … tailscaled N
//	       │   one tailscale-nri                  │   a process and a netns each
//	control plane, DERP, STUN              control plane, DERP, STUN
//
// Between the peer and each node go datagrams in both directions and one TCP connection, written to from both ends, at
// a steady rate. All sockets are this process's, opened in the netns of the node and of the peer: nothing that is
// restarted holds them, and all arrivals are stamped with one clock, when the application has them.
//
// A gap is the longest time between two arrivals of which the later one lies in the time watched, from just before the
// event until all is well again. Nothing is subtracted: a gap of one interval between two packets is not a gap.
//
// The table is not benchstat's, as that of package bench is: a gap that had not ended is a bound and not a value, and the
// longest gap counts, which benchstat does not show.
//
// The package does not judge a figure, and fails for no slow machine; what it does fail for is a TCP connection of a
// pod that did not survive.
package blackout
