// SPDX-License-Identifier: BSD-3-Clause

// Package control runs a tailnet of its own in one process: control plane,
// DERP, STUN and the few calls of Tailscale's API that hand out auth keys and
// delete devices.
//
//	             ┌──────────────── Server ────────────────────┐
//	node ──Noise─┤ front: keys, register, map ── testcontrol  │
//	node ──TLS───┤ DERP                          (registrar)  │
//	node ──UDP───┤ STUN                                       │
//	engine ─HTTP─┤ API: oauth/token, oauth/token-exchange,    │
//	             │      keys, device, devices                 │
//	             └────────────────────────────────────────────┘
//
// The registrar is tailscale.com/tstest/integration/testcontrol: it gives a
// node its ID, its addresses and its login, and makes the frame of a netmap.
// It knows one auth key at most, deletes nothing, sends whole netmaps, and ends
// the process at a request that it does not know. So a front ends the Noise
// connections itself. What it decides as production does:
//
//   - An auth key works once (unless reusable), for as long as it lives, and
//     its tags become the node's.
//   - A deleted device leaves the other nodes' netmaps at once, and its own
//     poll gets 404 "node not found" from then on, as production's does. It has
//     to log in again.
//   - No two devices have one name: the later one gets a number, and keeps it
//     when the earlier one is gone, until it is renamed.
//   - A device whose key is expired is told so in its netmap, and is the same
//     device again after the next login.
//   - A federated identity (TrustIssuer) gets an access token for a token of its
//     issuer's, if that has the issuer's signature, the identity's audience and
//     subject, and has not expired.
//   - A netmap stream is whole at first and deltas from there, each made of all
//     that changed since the last: a burst of N nodes costs N², not N³.
//
// A map poll runs in its request's goroutine and is notified of changes by a channel.
// One mutex guards the table of nodes; it is never held over a write to the
// network.
//
// What an admin decides is in admin.go (a device's key, name, addresses, end),
// policy.go (what may come in, and how a node is told of a peer) and lock.go
// (tailnet lock).
//
// With Config.Headscale it does as Headscale does where that differs: see
// headscale.go.
//
// The package does not persist anything, reads no policy files (SetPolicy takes
// rules; until then all may talk to all), approves no routes, has no SSH and no
// web login: a node without a key is told a URL that cannot be visited. Its
// tailnet lock has one trusted key, and cannot be disabled.
package control
