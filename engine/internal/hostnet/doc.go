// SPDX-License-Identifier: BSD-3-Clause

// Package hostnet is what all nodes share of the host's own network: one watch of
// its interfaces, addresses and routes. It changes nothing there, and knows no
// node and no pod.
package hostnet
