// SPDX-License-Identifier: BSD-3-Clause

package config

import (
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"tailscale.com/net/tsaddr"

	"tailscale-nri/nri-plugin/internal/podspec"
)

// EnvServiceHost is set by the kubelet in every container: the address of the
// Service of the cluster's API server, the first of the range of Services.
const EnvServiceHost = "KUBERNETES_SERVICE_HOST"

// ranges reads prefixes. One address is a prefix too.
func (r *reader) ranges(key string) []netip.Prefix {
	var ranges []netip.Prefix
	for field := range strings.SplitSeq(r.text(key), ",") {
		field = strings.TrimSpace(field)
		if field == "" {
			continue
		}
		p, err := podspec.ParseRange(field)
		if err != nil {
			r.bad(key, field, err.Error())
			continue
		}
		ranges = append(ranges, p)
	}
	return ranges
}

// ServicesNear returns addresses that are almost certainly of the cluster's Services, if
// the ranges do not name them: at most 65,536 near the API server's address, which is the
// first of them. The zero Prefix is none, as where peers may have them.
func ServicesNear(ranges []netip.Prefix, serviceHost string) netip.Prefix {
	host, err := netip.ParseAddr(serviceHost)
	named := func(p netip.Prefix) bool { return p.Contains(host) }
	if err != nil || slices.ContainsFunc(ranges, named) || tsaddr.CGNATRange().Contains(host) || tsaddr.TailscaleULARange().Contains(host) {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(host, host.BitLen()-16).Masked()
}

// unnamedServices is logged at start, and is the reason of each node that runs.
const unnamedServices = "the cluster's Services have addresses of Tailscale's range, and a peer may have the same: name their range in TS_CLUSTER_RANGES"

// UnnamedServices returns what a user should know if the cluster's Services, its DNS
// among them, have addresses that peers may have, and the ranges do not name them; "" if
// that is not so.
func UnnamedServices(ranges []netip.Prefix, serviceHost string) string {
	host, err := netip.ParseAddr(serviceHost)
	if err != nil || slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(host) }) ||
		!tsaddr.CGNATRange().Contains(host) && !tsaddr.TailscaleULARange().Contains(host) {
		return ""
	}
	return unnamedServices
}

// ClusterRanges returns what stays on the pods' eth0: the ranges, and the API
// server's address, which every pod is told. If that is in a range of
// Tailscale's, the other Services are as well, and how many is not known.
func ClusterRanges(ranges []netip.Prefix, serviceHost string, log *slog.Logger) []netip.Prefix {
	host, err := netip.ParseAddr(serviceHost)
	if err != nil || slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(host) }) {
		return ranges
	}
	if UnnamedServices(ranges, serviceHost) != "" {
		log.Warn(unnamedServices, EnvServiceHost, serviceHost)
	}
	return append(slices.Clone(ranges), netip.PrefixFrom(host, host.BitLen()))
}
