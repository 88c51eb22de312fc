// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"tailscale.com/tailcfg"

	"tailscale-nri/engine/internal/nstest"
)

// liveWithin is how long a change by an admin takes at most to reach a pod.
const liveWithin = time.Second

// live makes a change and takes it back, three times, and wants either to have reached the
// pod within a second. The fastest of the three counts: the machine has other work.
func (w *world) live(what string, change func(on bool) error, has func(on bool) bool) {
	w.t.Helper()
	took := map[bool][]time.Duration{}
	for range 3 {
		for _, on := range []bool{true, false} {
			start := time.Now()
			if err := change(on); err != nil {
				w.t.Fatal(err)
			}
			w.until(fmt.Sprintf("%s is %v", what, on), func() bool { return has(on) }, func() string { return "" })
			took[on] = append(took[on], time.Since(start))
		}
	}
	w.t.Logf("%s: made %v, taken back %v", what, took[true], took[false])
	if slowest := max(slices.Min(took[true]), slices.Min(took[false])); slowest > liveWithin {
		w.t.Errorf("%s reaches the pod after %v, want %v", what, slowest, liveWithin)
	}
}

// Routes, an exit node, DNS, addresses and names that an admin changes reach pods that
// run, in place, within a second.
func TestLiveChanges(t *testing.T) {
	w := newWorld(t)
	w.boot()
	gate := w.startStock("gate")
	give(t, gate.Pod, officeAddr, worldAddr)
	serveEcho(t, gate.Pod)
	device := gate.up("--advertise-exit-node", "--advertise-routes="+office)
	routed, podRouted := w.pod("routed")
	podRouted.Features.AcceptRoutes = true
	leaving, podLeaving := w.pod("leaving")
	podLeaving.Features.ExitNode = "gate"
	named := w.namedPod("named", nstest.NewCluster(t, clusterNames()))
	named.attach(w)
	w.mustAttach(podRouted)
	w.mustAttach(podLeaving)
	nodes := map[*nstest.Pod]NodeStatus{routed: w.await(podRouted.UID, Running), leaving: w.await(podLeaving.UID, Running)}
	w.await(named.pod.UID, Running)
	asked := map[string]string{podRouted.UID: prefsOf(w, podRouted.UID), podLeaving.UID: prefsOf(w, podLeaving.UID), named.pod.UID: prefsOf(w, named.pod.UID)}

	// reaches reports whether an address is reached, or no route leads there.
	reaches := func(p *nstest.Pod, to string, on bool) bool {
		if on {
			return called(p, to) == nodes[p].Addresses[0].String()
		}
		_, err := p.Netlink().RouteGet(net.ParseIP(to))
		return err != nil
	}
	approved := func(routes ...string) func(bool) error {
		return func(on bool) error {
			if on {
				w.approve(device.ID, routes...)
			} else {
				w.approve(device.ID)
			}
			return nil
		}
	}
	w.live("a subnet route", approved(office), func(on bool) bool { return reaches(routed, officeAddr, on) })
	w.live("an exit node", approved("0.0.0.0/0", "::/0"), func(on bool) bool { return reaches(leaving, worldAddr, on) })

	const record, search = "extra.example.", "corp.example"
	w.live("a record and a search domain", func(on bool) error {
		w.control.SetDNS(dnsConfig(func(d *tailcfg.DNSConfig) {
			if on {
				d.Domains = append(d.Domains, search)
				d.ExtraRecords = []tailcfg.DNSRecord{{Name: record, Value: "203.0.113.5"}}
			}
		}))
		return nil
	}, func(on bool) bool {
		m, err := named.Ask("udp", named.resolver, record, dnsmessage.TypeA)
		return err == nil && (len(m.Answers) == 1) == on && strings.Contains(named.file(w), " "+search) == on
	})

	self := nodes[routed]
	w.live("an address", func(on bool) error {
		addrs := slices.Clone(self.Addresses)
		if on {
			addrs[0] = netip.MustParseAddr("100.99.0.7")
		}
		return w.control.SetAddresses(self.NodeID, addrs...)
	}, func(on bool) bool {
		have, err := addresses(routed)
		return err == nil && slices.Contains(have, "100.99.0.7/32") == on && slices.Contains(have, self.Addresses[0].String()+"/32") != on
	})
	w.live("a name", func(on bool) error {
		return w.devices().Rename(t.Context(), self.NodeID, map[bool]string{true: "renamed", false: podRouted.Hostname}[on])
	}, func(on bool) bool { return strings.HasPrefix(w.statusOf(self.UID).DNSName, "renamed.") == on })
	if now := w.statusOf(self.UID); now.NodeID != self.NodeID || !now.Since.Equal(self.Since) {
		t.Errorf("the node is %s since %v, was %s since %v", now.NodeID, now.Since, self.NodeID, self.Since)
	}
	for uid, was := range asked {
		if now := prefsOf(w, uid); now != was {
			t.Errorf("%s: the tailnet has changed the node's preferences, which are the pod's:\n%s\nwas\n%s", uid, now, was)
		}
	}
}

// prefsOf are the preferences of a node that runs, without the exit node's ID: the engine sets that to the peer that the
// pod has named, while it offers itself.
func prefsOf(w *world, uid string) string {
	w.t.Helper()
	s := w.nodeOfUID(uid).runningSession()
	if s == nil {
		w.t.Fatalf("the node of %s does not run", uid)
	}
	p := s.b.Prefs().AsStruct()
	p.Persist, p.ExitNodeID = nil, ""
	return fmt.Sprintf("%+v", *p)
}
