// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"

	"tailscale-nri/k3d/lab/scene"
)

// TestTraffic has TCP, UDP and ICMP cross in every direction, over both families: as much as goes, and packets as large
// as go.
func TestTraffic(t *testing.T) {
	t.Parallel()
	s := openServed(t, "traffic")
	s.must(s.StartPeer(s.ctx))
	web, db := s.runServing("web"), s.runServing("db")
	sink := s.Peer.Command(s.ctx, s.Lab.ToolPath(), "all")
	s.must(sink.Start()) // ends with the context
	peer := s.AtPeer()
	s.eventually(func() error { _, err := s.Fetch(s.ctx, peer, peer.IP4); return err })
	for _, c := range []struct {
		from, to scene.Place
	}{{peer, s.InPod(web)}, {s.InPod(web), peer}, {s.InPod(web), s.InPod(db)}, {s.InPod(db), s.InPod(web)}} {
		for _, at := range []netip.Addr{c.to.IP4, c.to.IP6} {
			t.Run(fmt.Sprintf("%s to %s at %v", c.from.Name, c.to.Name, at), func(t *testing.T) { s.assertCarries(t, c.from, at) })
		}
	}
}

func (s *stage) assertCarries(t *testing.T, from scene.Place, at netip.Addr) {
	t.Helper()
	var r struct {
		Bytes          int64
		Seconds        float64
		Sent, Received int
	}
	ask := func(args ...string) {
		t.Helper()
		r.Bytes, r.Received = 0, 0
		out, err := from.Tool(s.ctx, args...)
		if err == nil {
			err = json.Unmarshal([]byte(out), &r)
		}
		if err != nil {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
	ask("send", "-for", "500ms", "-streams", "2", netip.AddrPortFrom(at, 5201).String())
	if r.Bytes < 1<<20 {
		t.Errorf("expected some megabytes over TCP, saw %d bytes", r.Bytes)
	}
	t.Logf("TCP: %.0f Mb/s", float64(r.Bytes)*8/1e6/r.Seconds)
	const packets = 50 // which fit into a socket's buffer, should the echo have to wait for a CPU
	ask("udp", "-count", fmt.Sprint(packets), "-size", "1200", "-every", "2ms", netip.AddrPortFrom(at, 7).String())
	if r.Received < packets*9/10 {
		t.Errorf("expected %d UDP packets back, saw %d", packets, r.Received)
	}
	// 1280 bytes, ts0's MTU, less the headers of ICMP and IP.
	size := 1280 - 8 - 20
	if at.Is6() {
		size -= 20
	}
	if out, err := from.Tool(s.ctx, "ping", "-count", "3", "-size", fmt.Sprint(size), at.String()); err != nil {
		t.Errorf("pinging with %d bytes: %v: %s", size, err, out)
	}
}
