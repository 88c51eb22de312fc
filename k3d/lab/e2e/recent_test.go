// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"tailscale.com/version"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/scene"
)

// TestRecentPeer has a pod and a stock tailscaled of the engine's own version talk, as TestTraffic and TestPluginRestarts
// have an older one: over both families and in both directions, by TSMP, over a restart of the plugin and over one of the
// peer.
func TestRecentPeer(t *testing.T) {
	t.Parallel()
	s := openServed(t, "recent")
	s.startRecentPeer()
	web := s.runServing("web")
	peer, pod := s.AtPeer(), s.InPod(web)
	s.serveTraffic(peer, pod)
	talk := func(when string) {
		for _, c := range []struct{ from, to scene.Place }{{peer, pod}, {pod, peer}} {
			for _, at := range []netip.Addr{c.to.IP4, c.to.IP6} {
				t.Run(fmt.Sprintf("%s, %s to %s at %v", when, c.from.Name, c.to.Name, at), func(t *testing.T) { s.assertCarries(t, c.from, at) })
			}
		}
		for _, at := range []netip.Addr{pod.IP4, pod.IP6} {
			if out, err := s.Peer.Tailscale(s.ctx, "ping", "--tsmp", "-c", "5", at.String()); err != nil {
				t.Errorf("%s: pinging %v by TSMP: %v: %s", when, at, err, out)
			}
		}
	}
	talk("at first")

	waits, err := s.Survive(s.ctx, web, []scene.Place{peer}, func(ctx context.Context) error {
		if err := s.Plugin.End(ctx, unix.SIGKILL); err != nil {
			return err
		}
		s.start()
		return s.Registered(ctx)
	})
	s.must(err)
	t.Logf("kill -9 of the plugin: the longest silence was %v", waits[0])
	s.must(s.AwaitRunning(s.ctx, web))
	talk("after the plugin's restart")

	waits, err = s.Survive(s.ctx, web, []scene.Place{peer}, s.Peer.Restart)
	s.must(err)
	t.Logf("kill -9 of the peer: the longest silence was %v", waits[0])
	talk("after the peer's restart")
}

// startRecentPeer has a peer of the engine's own version take the older one's place.
func (s *stage) startRecentPeer() {
	s.t.Helper()
	key, err := s.plane.NewKey(s.ctx, "tag:k8s-pod")
	s.must(err)
	s.Peer, err = s.Lab.StartPeer(s.ctx, lab.PeerConfig{Name: "recent", LoginServer: s.plane.ControlURL, AuthKey: key, Recent: true})
	s.must(err)
	want, _, _ := strings.Cut(version.Short(), "-")
	if out, err := s.Peer.Tailscale(s.ctx, "version", "--daemon"); err != nil || !strings.Contains(out, "Daemon: "+want) {
		s.t.Fatalf("the peer is %q (%v), want version %s of the engine: build it with make lab-tools", out, err, want)
	}
}
