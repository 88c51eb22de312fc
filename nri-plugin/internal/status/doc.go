// SPDX-License-Identifier: BSD-3-Clause

// Package status is what tailscale-nri says of a host's pods: the versioned answer
// of GET /v1/status on the status socket, and its printing as a table, JSON or YAML.
// Reports of several hosts can be printed together.
//
// It makes no request: it knows neither the socket nor the engine, and so builds on
// systems that have no netlink.
package status
