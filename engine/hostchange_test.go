// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"log/slog"
	"net"
	"strings"
	"testing"

	"tailscale-nri/engine/internal/nstest"

	"github.com/vishvananda/netlink"
)

// routeBy has the host's default route lead over the link.
func routeBy(t *testing.T, link *netlink.Veth) {
	t.Helper()
	all := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: all, Scope: netlink.SCOPE_LINK}); err != nil {
		t.Fatal(err)
	}
}

// A host's new address, and another default route, have each node open its sockets
// again, also one that was starting meanwhile, and their pods talk on.
func TestHostChangeReachesNodes(t *testing.T) {
	first := nstest.HostLink(t, "hostch0", "198.51.100.1/24")
	routeBy(t, first)
	w := newWorld(t)
	var log logBuffer
	w.boot(func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		c.NoLocalDelivery = true
	})
	a, podA := w.pod("a")
	b, podB := w.pod("b")
	serveEcho(t, b)
	w.mustAttach(podA)
	w.mustAttach(podB)
	w.await(podA.UID, Running)
	to := w.await(podB.UID, Running).Addresses[0]

	_, podC := w.pod("c")
	w.mustAttach(podC)
	second := nstest.HostLink(t, "hostch1", "203.0.113.1/24")
	hears := func(of string, pods ...Pod) {
		for _, pod := range pods {
			w.until(pod.Name+" hears of "+of, func() bool { return log.rebinds(pod, of) > 0 }, func() string { return "nothing" })
		}
	}
	hears("hostch1:[203.0.113.1", podA, podB)
	w.await(podC.UID, Running)
	routeBy(t, second)
	hears("default-if-changed", podA, podB, podC)
	if _, err := callerSeen(a, to); err != nil {
		t.Errorf("a reaches b no longer: %v", err)
	}
}

// rebinds counts the lines of the pod's node that have it open its sockets again and
// have the text.
func (l *logBuffer) rebinds(pod Pod, text string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		if strings.Contains(line, "LinkChange: major") && strings.Contains(line, " uid="+pod.UID+" ") && strings.Contains(line, text) {
			n++
		}
	}
	return n
}
