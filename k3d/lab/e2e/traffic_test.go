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
	peer := s.AtPeer()
	s.serveTraffic(peer, s.InPod(web), s.InPod(db))
	for _, c := range []struct {
		from, to scene.Place
	}{{peer, s.InPod(web)}, {s.InPod(web), peer}, {s.InPod(web), s.InPod(db)}, {s.InPod(db), s.InPod(web)}} {
		for _, at := range []netip.Addr{c.to.IP4, c.to.IP6} {
			t.Run(fmt.Sprintf("%s to %s at %v", c.from.Name, c.to.Name, at), func(t *testing.T) { s.assertCarries(t, c.from, at) })
		}
	}
}

// serveTraffic starts what assertCarries needs at the peer and in pods, until the test's end: iperf3, and at the peer
// labtool, which is a pod's container anyway.
func (s *stage) serveTraffic(peer scene.Place, pods ...scene.Place) {
	s.t.Helper()
	s.must(s.Peer.Command(s.ctx, s.Lab.ToolPath(), "all").Start())
	s.eventually(func() error { _, err := s.Fetch(s.ctx, peer, peer.IP4); return err })
	for _, place := range append(pods, peer) {
		server, err := place.Command(s.ctx, "iperf3", "-s")
		s.must(err)
		s.must(server.Start())
		s.eventually(func() error { _, err := s.sendTCP(place, place.IP4); return err })
	}
}

// sendTCP sends 32 MiB in two streams and returns how many bits arrived in a second. What is under way when all is sent
// does not count as received.
func (s *stage) sendTCP(from scene.Place, to netip.Addr) (rate float64, err error) {
	out, err := from.Run(s.ctx, "iperf3", "-J", "-c", to.String(), "-P", "2", "-n", "32M")
	var said struct {
		Error string
		End   struct {
			Received struct{ Bytes, Seconds float64 } `json:"sum_received"`
		}
	}
	err = errors.Join(err, json.Unmarshal([]byte(out), &said))
	got := said.End.Received
	if err == nil && got.Bytes < 1<<20 { // iperf3 -J ends with 0 also when it could not connect
		err = fmt.Errorf("expected some megabytes over TCP, saw %.0f bytes: %s", got.Bytes, said.Error)
	}
	return got.Bytes * 8 / got.Seconds, err
}

func (s *stage) assertCarries(t *testing.T, from scene.Place, at netip.Addr) {
	t.Helper()
	rate, err := s.sendTCP(from, at)
	if err != nil {
		t.Error(err)
	}
	t.Logf("TCP: %.0f Mb/s", rate/1e6)
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
