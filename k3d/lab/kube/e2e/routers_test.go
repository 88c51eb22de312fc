// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
)

// routers has a pod of n1 forward to a pod there that has no node of its own. A pod of n2 and a stock peer, on a third
// host, reach that one through it once the route is approved, and the pod of n2 by eth0 again once it no longer is.
func routers(s *stage) {
	s.setKeys(object{
		"policy.yaml":    "rules:\n- name: routers\n  namespaces: [default]\n  allow: {features: [advertise-routes]}\n",
		"TS_POLICY_FILE": "/etc/tailscale-nri/policy.yaml",
	})
	defer s.setKeys(object{"policy.yaml": nil, "TS_POLICY_FILE": ""})
	s.apply(podSpec{name: "inside", node: "n1"}.object())
	s.awaitReady("inside")
	inside := s.podIP("inside")
	route := netip.PrefixFrom(inside, inside.BitLen())
	agent, err := s.agent("n1")
	s.must(err)
	s.logs(agent, "msg=starting ", "rules=1")
	s.agentReady(agent)

	s.apply(podSpec{name: "router", node: "n1", annotations: enabled("tailscale.com/advertise-routes", route.String())}.object(),
		podSpec{name: "client", node: "n2", annotations: enabled("tailscale.com/accept-routes", "true")}.object())
	s.awaitReady("router", "client")
	router := s.awaitRunning("router", "client")[0]
	s.eventually(func() error {
		n, err := s.tailnetNodeOf("router")
		if err == nil && !strings.Contains(n.Reason, "waits for approval: "+route.String()) {
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

	s.must(s.plane.SetRoutes(s.ctx, router.NodeID, route))
	asked(s.podIP("router"), fromClient)
	_, err = s.peer.Tailscale(s.ctx, "set", "--accept-routes")
	s.must(err)
	defer func() {
		_, err := s.peer.Tailscale(s.ctx, "set", "--accept-routes=false")
		s.must(err)
	}()
	asked(s.podIP("router"), func() (page, error) { return s.fetchFromPeer(inside) })

	s.must(s.plane.SetRoutes(s.ctx, router.NodeID))
	asked(s.podIP("client"), fromClient)
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
