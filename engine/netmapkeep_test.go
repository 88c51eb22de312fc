// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale.com/ipn/ipnlocal/netmapcache"
	"tailscale.com/tailcfg"
	"tailscale.com/tstime"
	"tailscale.com/types/netmap"

	"tailscale-nri/engine/internal/podstate"
	"tailscale-nri/engine/measure"
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
	n := w.find(a.SandboxID)
	w.untilNetmapSettled(n)
	before := n.written.all()
	first := w.devicesEndpoints(b.NodeID)
	more := append(first[:len(first):len(first)], netip.MustParseAddrPort("192.0.2.7:7"))
	for range 5 {
		w.find(b.SandboxID).runningSession().b.control.cut() // offline, online
		for _, eps := range [][]netip.AddrPort{more, first, more} {
			if err := w.control.SetEndpoints(b.NodeID, eps...); err != nil {
				t.Fatal(err)
			}
		}
		tstime.Sleep(t.Context(), netmapPause/2) // some changes are looked at meanwhile
	}
	for file, bytes := range n.written.all() {
		if bytes != before[file] {
			t.Errorf("%s: %d bytes were written for a peer that flaps", measure.File(file), bytes-before[file])
		}
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
	// What was left for later is written at most this often while the process runs.
	const each = uint64(time.Hour / netmapSlow)
	var hourly uint64
	for file, bytes := range n.written.all() {
		t.Logf("%s: at most %d bytes per pod and hour", measure.File(file), each*(bytes-before[file]))
		hourly += each * (bytes - before[file])
	}
	if hourly == 0 || hourly > 64<<10 {
		t.Errorf("%d bytes per pod and hour", hourly)
	}
}

// untilNetmapSettled waits until the disk has all of the node's netmap that is written at
// once, and until that is complete: the last thing that a peer learns of itself is its home
// DERP region.
func (w *world) untilNetmapSettled(n *node) {
	w.t.Helper()
	dir := netmapcache.FileStore(filepath.Join(n.dir, podstate.NetmapDir))
	var why string
	w.until("the netmap is settled and on disk", func() bool {
		_, now := digestNetmap(n.runningSession().b.NetMapWithPeers())
		stored, err := netmapcache.NewCache(dir).Load(w.t.Context())
		if err != nil {
			why = err.Error()
			return false
		}
		for _, p := range stored.Peers {
			if p.HomeDERP() == 0 || p.Endpoints().Len() == 0 {
				why = "not complete: " + p.Name()
				return false
			}
		}
		_, kept := digestNetmap(stored)
		pause, differs := now.pauseAfter(kept)
		why = fmt.Sprintf("differs: %v, to be written after %v", differs, pause)
		return !differs || pause > netmapPause
	}, func() string { return why })
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
