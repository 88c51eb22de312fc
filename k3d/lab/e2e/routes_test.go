// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/scene"
)

// TestRoutes has a stock tailscaled reach a pod of the cluster by way of a pod that is a subnet router, and a pod reach
// an address behind that tailscaled, its exit node, and nowhere else, over kill -9 of the plugin too.
func TestRoutes(t *testing.T) {
	t.Parallel()
	const world = "198.51.100.1"
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(policy, []byte("rules: [{name: routers, allow: {features: ['*']}}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := openServed(t, "routes", "TS_POLICY_FILE="+policy)
	s.startRecentPeer()
	_, err := s.Peer.Exec(s.ctx, "ip", "address", "add", world+"/32", "dev", "lo")
	s.must(err)
	s.must(s.Peer.Command(s.ctx, s.Lab.ToolPath(), "all").Start()) // ends with the context
	_, err = s.Peer.Tailscale(s.ctx, "set", "--accept-routes", "--advertise-exit-node")
	s.must(err)

	web, err := s.RunPod(s.ctx, lab.PodSpec{Name: "web"})
	s.must(err)
	webAddr := netip.MustParseAddr(web.IPs[0])
	router, err := s.RunSandbox(s.ctx, lab.PodSpec{Name: "router", Annotations: scene.OptIn("tailscale.com/advertise-routes", web.IPs[0]+"/32")})
	s.must(err)
	s.awaitReason(router, "advertised, waits for approval: "+web.IPs[0]+"/32")
	s.must(s.plane.SetRoutes(s.ctx, s.deviceID("default-router"), netip.PrefixFrom(webAddr, webAddr.BitLen())))
	s.eventually(func() error { return s.seenAs(s.AtPeer(), webAddr, router.IPs[0]) })

	client, err := s.RunPod(s.ctx, lab.PodSpec{Name: "client", Annotations: scene.OptIn("tailscale.com/exit-node", "recent")})
	s.must(err)
	s.awaitReason(client, "exit node recent offers none")
	closed := func(when string) {
		t.Helper()
		if out, err := s.InPod(client).Tool(s.ctx, "get", "-timeout", "2s", "http://"+world+":8080/"); err == nil {
			t.Errorf("%s, a pod without its exit node got %s", when, out)
		}
		if err := s.seenAs(s.InPod(client), webAddr, client.IPs[0]); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	closed("before approval")
	s.must(s.plane.SetRoutes(s.ctx, s.deviceID("recent"), netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")))
	s.must(s.AwaitRunning(s.ctx, client))
	own := client.IP4().String()
	s.eventually(func() error { return s.seenAs(s.InPod(client), netip.MustParseAddr(world), own) })
	s.must(s.seenAs(s.InPod(client), webAddr, client.IPs[0]))
	s.must(s.Plugin.End(s.ctx, unix.SIGKILL))
	closed("while the plugin is dead")
	s.start("TS_POLICY_FILE=" + policy)
	s.eventually(func() error { return s.seenAs(s.InPod(client), netip.MustParseAddr(world), own) })
	s.eventually(func() error { return s.seenAs(s.AtPeer(), webAddr, router.IPs[0]) })
}

// awaitReason returns when the pod's node runs and its reason begins like that.
func (s *stage) awaitReason(pod *scene.Pod, text string) {
	s.t.Helper()
	_, err := s.AwaitNode(s.ctx, pod, func(n scene.Node) error {
		if n.State != "Running" || !strings.HasPrefix(n.Reason, text) {
			return fmt.Errorf("node of %s is %s: %q, want %q", pod.FullName(), n.State, n.Reason, text)
		}
		return nil
	})
	s.must(err)
}

// seenAs fetches a page, and wants to have been seen under an address there.
func (s *stage) seenAs(from scene.Place, at netip.Addr, as string) error {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	page, err := s.Fetch(ctx, from, at)
	if err == nil && page.Remote.Addr().Unmap().String() != as {
		err = fmt.Errorf("%s is seen at %v as %v, want %s", from.Name, at, page.Remote.Addr(), as)
	}
	return err
}

// deviceID returns the ID of the device whose hostname ends like that.
func (s *stage) deviceID(name string) string {
	s.t.Helper()
	devices, err := s.plane.Devices(s.ctx)
	s.must(err)
	for _, d := range devices {
		if strings.HasSuffix(d.Hostname, name) {
			return d.ID
		}
	}
	s.must(errors.New("no device " + name))
	return ""
}
