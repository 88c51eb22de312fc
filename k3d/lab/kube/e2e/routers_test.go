// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// routers has a pod of n1 forward to a pod there that has no node of its own, and to a Service. A pod of n2 and a stock
// peer, on a third host, reach that pod through it once the route is approved, the peer the Service too, and the pod of n2
// by eth0 again once the route no longer is approved.
func routers(s *stage) {
	s.setKeys(object{
		"policy.yaml":    "rules:\n- name: routers\n  namespaces: [default]\n  allow: {features: [advertise-routes]}\n",
		"TS_POLICY_FILE": "/etc/tailscale-nri/policy.yaml",
	})
	defer s.setKeys(object{"policy.yaml": nil, "TS_POLICY_FILE": ""})
	s.apply(podSpec{name: "inside", node: "n1", labels: map[string]string{"app": "inside"}}.object(), service("inside", "inside"))
	s.awaitReady("inside")
	inside := s.podIP("inside")
	clusterIP := netip.MustParseAddr(s.kubectl("get", "service", "inside", "-o", "jsonpath={.spec.clusterIP}"))
	route, ofService := netip.PrefixFrom(inside, inside.BitLen()), netip.PrefixFrom(clusterIP, clusterIP.BitLen())
	agent, err := s.agent("n1")
	s.must(err)
	s.logs(agent, "msg=starting ", "rules=1")
	s.agentReady(agent)

	s.apply(podSpec{name: "router", node: "n1", annotations: enabled("tailscale.com/advertise-routes", route.String()+","+ofService.String())}.object(),
		podSpec{name: "client", node: "n2", annotations: enabled("tailscale.com/accept-routes", "true")}.object())
	s.awaitReady("router", "client")
	router := s.awaitRunning("router", "client")[0]
	s.eventually(func() error {
		n, err := s.tailnetNodeOf("router")
		if err == nil && !strings.Contains(n.Reason, "waits for approval: "+route.String()+", "+ofService.String()) {
			err = fmt.Errorf("%w: the reason is %q", errNotYet, n.Reason)
		}
		return err
	})
	asked := func(by netip.Addr, fetch func() (page, error)) {
		s.t.Helper()
		s.eventually(func() error {
			page, err := fetch()
			if err == nil && page.Remote.Addr() != by {
				err = fmt.Errorf("%w: pod inside was asked by %v, want %v", errNotYet, page.Remote.Addr(), by)
			}
			return err
		})
	}
	fromClient := func() (page, error) { return s.fetch("client", inside) }
	asked(s.podIP("client"), fromClient)

	s.must(s.plane.SetRoutes(s.ctx, router.NodeID, route, ofService))
	asked(s.podIP("router"), fromClient)
	_, err = s.peer.Tailscale(s.ctx, "set", "--accept-routes")
	s.must(err)
	defer func() {
		_, err := s.peer.Tailscale(s.ctx, "set", "--accept-routes=false")
		s.must(err)
	}()
	asked(s.podIP("router"), func() (page, error) { return s.fetchFromPeer(inside) })
	asked(s.podIP("router"), func() (page, error) {
		return readPage(s.peer.Exec(s.ctx, s.Lab.ToolPath(), "get", "-timeout", askPatience, "http://"+clusterIP.String()+"/"))
	})

	s.must(s.plane.SetRoutes(s.ctx, router.NodeID))
	asked(s.podIP("client"), fromClient)
}

// exitNode has a pod of n2 use the peer, which is on a third host, as its exit node. The world is reached by the peer or
// not at all; the kubelet's probes, the cluster's names and its pods are by eth0, whether the peer is there or not.
func exitNode(s *stage) {
	world := netip.MustParseAddr("198.51.100.1")
	s.worldBehindPeer(world)
	s.apply(podSpec{name: "inside", node: "n1"}.object(),
		podSpec{name: "leaves", node: "n2", annotations: enabled("tailscale.com/exit-node", "peer"), container: probed()}.object())
	s.awaitReady("inside", "leaves") // by probes, though the exit node is not there yet
	leaves, eth0, inside := s.awaitRunning("leaves")[0], s.podIP("leaves"), s.podIP("inside")
	inCluster := func() {
		s.t.Helper()
		if out, err := s.tool("leaves", "lookup", "kubernetes.default"); err != nil || strings.TrimSpace(out) != "10.96.0.1" {
			s.t.Errorf("kubernetes.default is %q, %v", out, err)
		}
		s.reaches("leaves", eth0, inside)
	}
	inCluster()
	s.eventually(func() error {
		n, err := s.tailnetNodeOf("leaves")
		if err == nil && !strings.HasPrefix(n.Reason, "exit node peer offers none") {
			err = fmt.Errorf("%w: the reason is %q", errNotYet, n.Reason)
		}
		return err
	})
	if out, err := s.tool("leaves", "get", "-timeout", "2s", urlOf(world)); err == nil {
		s.t.Errorf("without its exit node the pod got %s", out)
	}

	s.approveForPeer(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"))
	s.eventually(func() error {
		page, err := s.fetch("leaves", world)
		if err == nil && page.Remote.Addr() != leaves.IP4() {
			s.t.Errorf("the world was asked by %v, want %v", page.Remote.Addr(), leaves.IP4())
		}
		return err
	})
	inCluster()
	s.awaitReady("leaves")
}

// worldBehindPeer has the peer serve at an address of its own, and offer to be an exit node, until the end of the test.
func (s *stage) worldBehindPeer(world netip.Addr) {
	s.t.Helper()
	address := world.String() + "/32"
	_, err := s.peer.Exec(s.ctx, "ip", "address", "add", address, "dev", "lo")
	s.must(err)
	_, err = s.peer.Tailscale(s.ctx, "set", "--advertise-exit-node")
	s.must(err)
	serving := s.peer.Command(s.ctx, s.Lab.ToolPath(), "serve")
	s.must(serving.Start())
	s.t.Cleanup(func() {
		_ = serving.Process.Kill()
		_ = serving.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, unset := s.peer.Tailscale(ctx, "set", "--advertise-exit-node=false")
		_, removed := s.peer.Exec(ctx, "ip", "address", "delete", address, "dev", "lo")
		if err := errors.Join(unset, removed); err != nil {
			s.t.Error(err)
		}
	})
}

// approveForPeer approves routes of the peer, and no others.
func (s *stage) approveForPeer(routes ...netip.Prefix) {
	s.t.Helper()
	devices, err := s.plane.Devices(s.ctx)
	s.must(err)
	for _, d := range devices {
		if d.Hostname == "peer" {
			s.must(s.plane.SetRoutes(s.ctx, d.ID, routes...))
			return
		}
	}
	s.t.Fatal("the tailnet has no device of the peer")
}

// podIP is a pod's address in the cluster.
func (s *stage) podIP(name string) netip.Addr {
	s.t.Helper()
	facts, err := s.pod(name)
	s.must(err)
	addr, err := netip.ParseAddr(facts.Status.PodIP)
	s.must(err)
	return addr
}
