// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"encoding/hex"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/tstime"
	"tailscale.com/types/netmap"

	"tailscale-nri/engine/internal/podstate"
)

// What is written at once, what later and what not at all.
func TestNetmapDigest(t *testing.T) {
	ep := func(s ...string) (out []netip.AddrPort) {
		for _, s := range s {
			out = append(out, netip.MustParseAddrPort(s))
		}
		return out
	}
	online, seen := true, time.Now()
	base := tailcfg.Node{ID: 2, StableID: "n2", HomeDERP: 1, Endpoints: ep("192.0.2.1:1", "192.0.2.2:2")}
	digest := func(change func(*tailcfg.Node)) netmapDigest {
		p := base
		change(&p)
		nm, d := digestNetmap(&netmap.NetworkMap{SelfNode: (&tailcfg.Node{ID: 1}).View(), Peers: []tailcfg.NodeView{p.View()}})
		if nm.Peers[0].LastSeen().Valid() || nm.Peers[0].Online().Valid() || nm.Peers[0].Endpoints().Len() != len(p.Endpoints) {
			t.Errorf("kept: %+v", nm.Peers[0])
		}
		return d
	}
	was := digest(func(*tailcfg.Node) {})
	for name, tt := range map[string]struct {
		change  func(*tailcfg.Node)
		pause   time.Duration
		differs bool
	}{
		"nothing":                {func(*tailcfg.Node) {}, netmapSlow, false},
		"online, last seen":      {func(p *tailcfg.Node) { p.Online, p.LastSeen = &online, &seen }, netmapSlow, false},
		"endpoints in disorder":  {func(p *tailcfg.Node) { p.Endpoints = ep("192.0.2.2:2", "192.0.2.1:1") }, netmapSlow, false},
		"an endpoint more":       {func(p *tailcfg.Node) { p.Endpoints = ep("192.0.2.2:2", "192.0.2.3:3") }, netmapSlow, true},
		"endpoints all others":   {func(p *tailcfg.Node) { p.Endpoints = ep("192.0.2.3:3") }, netmapMoved, true},
		"what it says of itself": {func(p *tailcfg.Node) { p.Hostinfo = (&tailcfg.Hostinfo{OS: "plan9"}).View() }, netmapSlow, true},
		"home DERP":              {func(p *tailcfg.Node) { p.HomeDERP = 2 }, netmapPause, true},
		"address":                {func(p *tailcfg.Node) { p.AllowedIPs = []netip.Prefix{netip.MustParsePrefix("100.64.0.9/32")} }, netmapPause, true},
	} {
		if pause, differs := digest(tt.change).pauseAfter(was); differs != tt.differs || differs && pause != tt.pause {
			t.Errorf("%s: %v, differs %v, want %v, %v", name, pause, differs, tt.pause, tt.differs)
		}
	}
	base.Endpoints = nil
	if pause, differs := was.pauseAfter(digest(func(*tailcfg.Node) {})); !differs || pause != netmapPause {
		t.Errorf("first endpoints: %v, %v", pause, differs)
	}
}

// A peer that comes and goes is not written each time, and what is left for later
// is on the disk when the process ends in order.
func TestNetmapOfAFlappingPeer(t *testing.T) {
	w := newWorld(t)
	w.boot()
	a, b := w.join("a"), w.join("b")
	w.awaitKept(Pod{UID: a.UID}, 1)
	n := w.find(a.SandboxID)
	first := w.devicesEndpoints(b.NodeID)
	// What has been settled first is written by now: two looks later at the latest.
	tstime.Sleep(t.Context(), 3*netmapPause)
	written := n.serving.netmapBytes.Load()
	more := append(first[:len(first):len(first)], netip.MustParseAddrPort("192.0.2.7:7"))
	for range 5 {
		w.find(b.SandboxID).runningSession().b.control.cut() // offline, online
		for _, eps := range [][]netip.AddrPort{more, first, more} {
			if err := w.control.SetEndpoints(b.NodeID, eps...); err != nil {
				t.Fatal(err)
			}
		}
		tstime.Sleep(t.Context(), netmapPause/2)
	}
	if now := n.serving.netmapBytes.Load(); now != written {
		t.Errorf("%d bytes were written for a peer that flaps", now-written)
	}
	if err := w.control.SetEndpoints(b.NodeID, more...); err != nil {
		t.Fatal(err)
	}
	w.until("the node knows the endpoint", func() bool {
		nm := n.runningSession().b.NetMapWithPeers()
		return slices.ContainsFunc(nm.Peers, func(p tailcfg.NodeView) bool { return slices.Contains(p.Endpoints().AsSlice(), more[len(more)-1]) })
	}, func() string { return "" })
	w.halt()
	file := filepath.Join(w.dir, a.UID, podstate.NetmapDir, hex.EncodeToString([]byte("peer-"+b.NodeID)))
	if data, err := os.ReadFile(file); err != nil || !strings.Contains(string(data), "192.0.2.7:7") {
		t.Errorf("after an end in order the disk holds %s (%v)", data, err)
	}
}

// devicesEndpoints are those that the device has published.
func (w *world) devicesEndpoints(id string) []netip.AddrPort {
	for _, d := range w.control.Devices() {
		if d.ID == id {
			return d.Endpoints
		}
	}
	w.t.Fatalf("no device %s", id)
	return nil
}
