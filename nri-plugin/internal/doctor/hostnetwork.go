// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"tailscale.com/net/tsaddr"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/config"
)

// What a WireGuard packet with a full packet of ts0 in it takes, bytes: 1280, 32 of
// WireGuard, 8 of UDP, and the outer IP header.
const (
	underlayMTU4 = 1280 + 32 + 8 + 20
	underlayMTU6 = 1280 + 32 + 8 + 40
)

// tailscaledTable and its rules are those of a tailscaled on the host
// (tailscale.com/wgengine/router/osrouter, router_linux.go).
const (
	tailscaledTable                         = 52
	tailscaledFirstRule, tailscaledLastRule = 5210, 5299
)

// lookAtHost reads the host's links, routes and rules for the checks of this file.
func (h *Host) lookAtHost() (engine.HostView, *Finding) {
	v, err := h.inspect()
	if err != nil {
		f := unknown(err.Error())
		return v, &f
	}
	return v, nil
}

// checkMTU looks at the interface of each default route.
func checkMTU(_ context.Context, h *Host) []Finding {
	v, bad := h.lookAtHost()
	if bad != nil {
		return []Finding{*bad}
	}
	var findings []Finding
	for _, family := range []struct {
		name string
		v6   bool
		need int
	}{{"IPv4", false, underlayMTU4}, {"IPv6", true, underlayMTU6}} {
		link, ok := uplink(v, family.v6)
		if !ok {
			continue
		}
		seen := fmt.Sprintf("%s leaves by %s, MTU %d; a full packet of ts0 takes %d", family.name, link.Name, link.MTU, family.need)
		if link.MTU < family.need {
			findings = append(findings, warn(seen, remedyMTU))
		} else {
			findings = append(findings, fine(seen))
		}
	}
	if len(findings) == 0 {
		return []Finding{unknown("the host has no default route")}
	}
	return findings
}

// uplink returns the interface of the default route that is used.
func uplink(v engine.HostView, v6 bool) (engine.HostLink, bool) {
	var best *engine.HostRoute
	for i := range v.Routes {
		r := &v.Routes[i]
		if r.Table == unix.RT_TABLE_MAIN && r.Dst.Bits() == 0 && r.Dst.Addr().Is6() == v6 && r.Link != "" && (best == nil || r.Metric < best.Metric) {
			best = r
		}
	}
	if best == nil {
		return engine.HostLink{}, false
	}
	i := slices.IndexFunc(v.Links, func(l engine.HostLink) bool { return l.Name == best.Link })
	if i < 0 {
		return engine.HostLink{}, false
	}
	return v.Links[i], true
}

// isTailscaled reports whether a link is that of a tailscaled on the host.
func isTailscaled(l engine.HostLink) bool {
	return strings.HasPrefix(l.Name, "tailscale") && l.Type == "tuntap"
}

// checkRanges looks for addresses of Tailscale's that the host or the cluster has.
// Routes lead to the pods' addresses, so that these are among them.
func checkRanges(_ context.Context, h *Host) []Finding {
	v, bad := h.lookAtHost()
	if bad != nil {
		return []Finding{*bad}
	}
	if p, ok := wholeRange(h.cfg.Ranges); ok {
		return []Finding{warn(fmt.Sprintf("TS_CLUSTER_RANGES has %v, which is all of one of Tailscale's ranges", p), remedyRangesWhole)}
	}
	serviceHost := h.getenv(config.EnvServiceHost)
	seen := overlaps(v, h.cfg.Ranges, serviceHost)
	if len(seen) == 0 {
		text := "the host has no address or route in 100.64.0.0/10 or fd7a:115c:a1e0::/48 that is not in TS_CLUSTER_RANGES"
		if serviceHost == "" {
			text += "; addresses of Services are not seen without " + config.EnvServiceHost
		}
		return []Finding{fine(text)}
	}
	const shown = 5
	text := strings.Join(seen[:min(len(seen), shown)], ", ")
	if len(seen) > shown {
		text += fmt.Sprintf(" and %d more", len(seen)-shown)
	}
	if config.UnnamedServices(h.cfg.Ranges, serviceHost) != "" {
		return []Finding{warn(text, remedyServices)}
	}
	return []Finding{warn(text, remedyRanges)}
}

// wholeRange is a prefix that leaves nothing of one of Tailscale's ranges.
func wholeRange(named []netip.Prefix) (p netip.Prefix, ok bool) {
	for _, p := range named {
		for _, whole := range []netip.Prefix{tsaddr.CGNATRange(), tsaddr.TailscaleULARange()} {
			if p.Bits() <= whole.Bits() && p.Contains(whole.Addr()) {
				return p, true
			}
		}
	}
	return p, false
}

// overlaps are addresses and routes of the host, and the address of the Kubernetes
// API, that are Tailscale's and not in a range that is named.
func overlaps(v engine.HostView, named []netip.Prefix, serviceHost string) (seen []string) {
	note := func(p netip.Prefix, what string) {
		if !ofTailscale(p) || slices.ContainsFunc(named, func(r netip.Prefix) bool { return r.Bits() <= p.Bits() && r.Contains(p.Addr()) }) {
			return
		}
		if text := fmt.Sprintf("%v (%s)", p, what); !slices.Contains(seen, text) {
			seen = append(seen, text)
		}
	}
	tailscaled := map[string]bool{}
	for _, l := range v.Links {
		if tailscaled[l.Name] = isTailscaled(l); tailscaled[l.Name] {
			continue
		}
		for _, p := range l.Addrs {
			note(p, "address on "+l.Name)
		}
	}
	for _, r := range v.Routes {
		ofAddress := func(l engine.HostLink) bool {
			return l.Name == r.Link && slices.ContainsFunc(l.Addrs, func(p netip.Prefix) bool { return p.Masked() == r.Dst })
		}
		if r.Table != tailscaledTable && !tailscaled[r.Link] && !slices.ContainsFunc(v.Links, ofAddress) {
			note(r.Dst, "route by "+cmp.Or(r.Link, "no interface"))
		}
	}
	if host, err := netip.ParseAddr(serviceHost); err == nil {
		note(netip.PrefixFrom(host, host.BitLen()), config.EnvServiceHost)
	}
	return seen
}

// ofTailscale reports whether a prefix is in one of Tailscale's ranges, or wider and
// still not a default route.
func ofTailscale(p netip.Prefix) bool {
	return p.Bits() > 1 && (p.Overlaps(tsaddr.CGNATRange()) || p.Overlaps(tsaddr.TailscaleULARange()))
}

// checkTailscaled looks for a tailscaled on the host whose routes are in the way of
// the plugin's own traffic.
func checkTailscaled(_ context.Context, h *Host) []Finding {
	v, bad := h.lookAtHost()
	if bad != nil {
		return []Finding{*bad}
	}
	i := slices.IndexFunc(v.Links, isTailscaled)
	rules := slices.ContainsFunc(v.Rules, func(r engine.HostRule) bool {
		return r.Table == tailscaledTable && r.Priority >= tailscaledFirstRule && r.Priority <= tailscaledLastRule
	})
	if i < 0 {
		return []Finding{fine("none has an interface here")}
	}
	name := v.Links[i].Name
	if !rules {
		return []Finding{fine("also runs, on " + name + ", without rules of its own")}
	}
	var accepted []string
	for _, r := range v.Routes {
		switch {
		case r.Table != tailscaledTable || r.Link != name:
		case r.Dst.Bits() <= 1:
			return []Finding{warn(name+" takes all of the host's traffic (an exit node is set), and with it what the plugin sends to peers, DERP and the API", remedyExitNode)}
		case !ofTailscale(r.Dst):
			accepted = append(accepted, r.Dst.String())
		}
	}
	if len(accepted) > 0 {
		return []Finding{warn(fmt.Sprintf("%s has accepted %d routes (%s): what the plugin sends to peers in these subnets goes through it",
			name, len(accepted), strings.Join(accepted[:min(len(accepted), 3)], ", ")), remedyAccepted)}
	}
	return []Finding{fine("also runs, on " + name + ", with neither an exit node nor accepted routes")}
}

// checkManagers looks whether a network manager has taken a pod's link. It looks for an
// address that the plugin does not give, which is visible from anywhere, and for what
// managers write below /run.
func checkManagers(_ context.Context, h *Host) []Finding {
	v, bad := h.lookAtHost()
	if bad != nil {
		return []Finding{*bad}
	}
	links := slices.DeleteFunc(v.Links, func(l engine.HostLink) bool { return !engine.IsOurLink(l.Name) })
	visible := h.visibleRun()
	for _, l := range links {
		if len(l.Addrs) > 0 {
			return []Finding{warn(fmt.Sprintf("%s has the address %v, which the plugin does not give", l.Name, l.Addrs[0]), remedyManager)}
		}
		for _, run := range visible {
			if by := managerOf(h, run, l.Index); by != "" {
				return []Finding{warn(l.Name+" is managed by "+by, remedyManager)}
			}
		}
	}
	switch {
	case len(links) == 0:
		return []Finding{unknown("there is no link of a pod yet")}
	case len(visible) == 0:
		return []Finding{unknown(fmt.Sprintf("none of %d links has an address from outside; what systemd-networkd and NetworkManager say is not visible from here", len(links)))}
	}
	return []Finding{fine(fmt.Sprintf("%d links, none managed", len(links)))}
}

// visibleRun are the directories in which the host's /run is seen: this one's own, or
// that of the first process, which in the host's PID namespace is the host's.
func (h *Host) visibleRun() (dirs []string) {
	for _, dir := range []string{"run", "proc/1/root/run"} {
		for _, of := range []string{"systemd/netif", "NetworkManager"} {
			if _, err := os.Stat(h.path(dir, of)); err == nil && !slices.Contains(dirs, dir) {
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs
}

// managerOf names the manager of a link. Neither program documents these files:
// networkd's are those that sd-network reads, NetworkManager's its own for a restart.
// A link that networkd has not configured yet is "pending" there, and may be so for good.
func managerOf(h *Host, run string, index int) string {
	text, err := h.read(run, "systemd/netif/links", strconv.Itoa(index))
	if err == nil {
		for line := range strings.Lines(text) {
			state, ok := strings.CutPrefix(strings.TrimSpace(line), "ADMIN_STATE=")
			if ok && slices.Contains([]string{"configuring", "configured", "failed"}, state) {
				return "systemd-networkd (" + state + ")"
			}
		}
	}
	text, err = h.read(run, "NetworkManager/devices", strconv.Itoa(index))
	if err == nil && slices.Contains(strings.Fields(text), "managed=true") {
		return "NetworkManager"
	}
	return ""
}
