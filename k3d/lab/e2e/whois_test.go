// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/scene"
)

// who is what labtool's whois says of a caller.
type who struct {
	ID    string         `json:"id"`
	Name  string         `json:"name"`
	Addrs []netip.Prefix `json:"addrs"`
	Tags  []string       `json:"tags"`
}

// askWho has a place ask labtool's whois at an address, until that answers.
func (s *stage) askWho(from scene.Place, at netip.Addr) (w who, err error) {
	url := "http://" + netip.AddrPortFrom(at, 8082).String() + "/"
	out, err := from.Tool(s.ctx, "get", "-timeout", "30s", "-retry", "2s", url)
	if err != nil {
		return w, fmt.Errorf("%s asks %s: %w", from.Name, url, err)
	}
	return w, json.Unmarshal([]byte(out), &w)
}

// TestSocketClient: a program in a pod that has the socket learns who is calling with Tailscale's own client for Go, by
// the address that it sees, and goes on learning it when the plugin was away. Whoever is not of the tailnet is nobody.
func TestSocketClient(t *testing.T) {
	t.Parallel()
	s := openServed(t, "whois")
	s.must(s.StartPeer(s.ctx))
	app, err := s.RunSandbox(s.ctx, lab.PodSpec{Name: "app", Annotations: scene.OptIn(socketKey, "true")})
	s.must(err)
	s.must(s.AwaitRunning(s.ctx, app))
	s.runContainer(app, lab.ContainerSpec{Name: "main", Args: []string{"whois"}, User: 65534})
	caller, other := s.runServing("caller"), s.runServing("other")

	see := func() {
		t.Helper()
		for _, at := range []netip.Addr{app.IP4(), app.IP6()} {
			for _, pod := range []*scene.Pod{caller, other} {
				w, err := s.askWho(s.InPod(pod), at)
				node := pod.Node()
				if err != nil || w.ID != node.NodeID || strings.TrimSuffix(w.Name, ".") != strings.TrimSuffix(node.DNSName, ".") ||
					!slices.Contains(w.Tags, "tag:k8s-pod") || !hasOnly(w.Addrs, node.Addresses) {
					t.Errorf("%s asks %v, which takes it for %+v (%v); want %+v", pod.FullName(), at, w, err, node)
				}
			}
			w, err := s.askWho(s.AtPeer(), at)
			if err != nil || !hasOnly(w.Addrs, []netip.Addr{s.Peer.IP4, s.Peer.IP6}) {
				t.Errorf("the peer asks %v, which takes it for %+v (%v)", at, w, err)
			}
		}
	}
	see()

	// The pod is asked over its cluster's network too, where no tailnet node is.
	eth0, err := netip.ParseAddr(app.IPs[0])
	s.must(err)
	url := "http://" + netip.AddrPortFrom(eth0, 8082).String() + "/"
	stranger := func(text string) error {
		if out, err := s.OnNode().Tool(s.ctx, "get", url); err == nil || !strings.Contains(err.Error(), text) {
			return fmt.Errorf("the host asks over eth0: %q, %v; want %s", out, err, text)
		}
		return nil
	}
	s.must(stranger("403 Forbidden"))
	s.must(s.Plugin.End(s.ctx, unix.SIGTERM))
	s.must(stranger("502 Bad Gateway"))
	s.start()
	for _, pod := range []*scene.Pod{app, caller, other} {
		s.must(s.AwaitRunning(s.ctx, pod))
	}
	see() // the same process in the pod, through the same mount
	s.must(stranger("403 Forbidden"))
}

// hasOnly reports whether the prefixes are single addresses, and just these.
func hasOnly(prefixes []netip.Prefix, addrs []netip.Addr) bool {
	is := map[netip.Addr]bool{}
	for _, p := range prefixes {
		is[p.Addr()] = p.IsSingleIP()
	}
	for _, a := range addrs {
		if !is[a] {
			return false
		}
	}
	return len(prefixes) == len(addrs) && len(is) == len(addrs)
}
