// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"encoding/json"
	"errors"
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
	echo := s.Peer.Command(s.ctx, s.Lab.ToolPath(), "all")
	s.must(echo.Start()) // ends with the context
	peer := s.AtPeer()
	s.eventually(func() error { _, err := s.Fetch(s.ctx, peer, peer.IP4); return err })
	for _, place := range []scene.Place{peer, s.InPod(web), s.InPod(db)} {
		server, err := place.Command(s.ctx, "iperf3", "-s")
		s.must(err)
		s.must(server.Start())
	}
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
	var tcp struct {
		End struct {
			Received struct{ Bytes, Seconds float64 } `json:"sum_received"`
		}
	}
	s.eventually(func() error { // as soon as the server listens
		out, err := from.Run(s.ctx, "iperf3", "-J", "-c", at.String(), "-P", "2", "-n", "8M")
		return errors.Join(err, json.Unmarshal([]byte(out), &tcp))
	})
	if r := tcp.End.Received; r.Bytes < 1<<20 {
		t.Errorf("expected some megabytes over TCP, saw %.0f bytes", r.Bytes)
	} else {
		t.Logf("TCP: %.0f Mb/s", r.Bytes*8/1e6/r.Seconds)
	}
	var udp struct{ Answers, Lost int }
	out, err := from.Tool(s.ctx, "rr", "-udp", "-size", "1200", "-for", "100ms", "-timeout", "1s", netip.AddrPortFrom(at, 7).String())
	if err := errors.Join(err, json.Unmarshal([]byte(out), &udp)); err != nil || udp.Lost > udp.Answers/10 {
		t.Errorf("expected UDP packets to come back, saw %+v: %v", udp, err)
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
