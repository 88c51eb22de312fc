// SPDX-License-Identifier: BSD-3-Clause

// Package hostnet is what all nodes share of the host's own network: one watch of it, and
// one list of its interfaces.
//
//	kernel ── changes ──▶ [Monitor] ── ChangeDelta ──▶ [Follower] ──▶ bus of each backend
//	kernel ── changes ──▶ [ShareInterfaces] ──▶ the list ◀── netmon
//	                             ╰── look again ──▶ [Monitor]
//
// tailscale.com has one hook in a process for such a list, so that this one is the
// process's too.
//
// What this package does not do: it changes nothing, it knows no pod and no node, and it
// looks only at this process's own netns.
package hostnet
