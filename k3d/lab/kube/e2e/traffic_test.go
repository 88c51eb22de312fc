// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"tailscale-nri/k3d/lab/blackout"
	"tailscale-nri/k3d/lab/kube/install"
)

// reach has pods of both nodes and a peer talk to each other, each known by its own address.
func reach(s *stage) {
	nodes := s.pair("a", "b")
	a, b := nodes[0], nodes[1]
	for i := range a.Addresses { // IPv4, IPv6
		s.reaches("a", a.Addresses[i], b.Addresses[i])
		s.reaches("b", b.Addresses[i], a.Addresses[i])
		s.reachedFromPeer(a.Addresses[i])
		s.reachedFromPeer(b.Addresses[i])
	}
	serving := s.peer.Command(s.ctx, s.Lab.ToolPath(), "serve")
	s.must(serving.Start())
	defer func() {
		_ = serving.Process.Kill()
		_ = serving.Wait()
	}()
	s.eventually(func() error {
		page, err := s.fetch("a", s.peer.IP4)
		if err == nil && page.Remote.Addr() != a.IP4() {
			s.t.Errorf("the peer was asked by %v, want %v", page.Remote.Addr(), a.IP4())
		}
		return err
	})
	s.reaches("b", b.IP4(), s.peer.IP4)
	if a.name() != "lab1-default-a" || b.name() != "lab2-default-b" {
		s.t.Errorf("names in the tailnet are %s and %s", a.name(), b.name())
	}
}

// services has opted-in pods serve a Service, found by its name, for pods that opted in and pods that did not, on a node
// of each mode of kube-proxy.
func services(s *stage) {
	server := podSpec{name: "web", annotations: enabled(), container: probed(), more: spread("web")}
	s.apply(server.workload("Deployment", 2, nil), service("web", "web"),
		podSpec{name: "plain1", node: "n1"}.object(), podSpec{name: "member1", node: "n1", annotations: enabled()}.object(),
		podSpec{name: "plain2", node: "n2"}.object(), podSpec{name: "member2", node: "n2", annotations: enabled()}.object())
	s.kubectl("rollout", "status", "deployment/web", "--timeout="+patience.String())
	pods := []string{"plain1", "member1", "plain2", "member2"}
	s.awaitReady(pods...)
	s.awaitRunning(append(s.podsOf("web"), "member1", "member2")...)
	for node, rules := range map[string][]string{
		"n1": {"nft", "list", "table", "ip", "kube-proxy"}, "n2": {"iptables-save", "-t", "nat"},
	} {
		out, err := s.node(node).Exec(s.ctx, rules[0], rules[1:]...)
		s.must(err)
		if !strings.Contains(out, "default/web") {
			s.t.Errorf("kube-proxy of node %s works in another mode: %v has nothing of the Service", node, rules)
		}
	}
	for _, pod := range pods {
		facts, err := s.pod(pod)
		s.must(err)
		if out, err := s.tool(pod, "lookup", "kubernetes.default"); err != nil || strings.TrimSpace(out) != "10.96.0.1" {
			s.t.Errorf("in pod %s kubernetes.default is %q, %v", pod, out, err)
		}
		hosts := map[string]bool{}
		for range 12 {
			page, err := readPage(s.tool(pod, "get", "-timeout", askPatience, "http://web/"))
			s.must(err)
			hosts[page.Host] = true
			if ip := netip.MustParseAddr(facts.Status.PodIP); page.Remote.Addr() != ip {
				s.t.Errorf("the Service was asked by %v, want %v, eth0 of pod %s", page.Remote.Addr(), ip, pod)
			}
		}
		if len(hosts) != 2 {
			s.t.Errorf("pod %s reached %d of the Service's 2 pods", pod, len(hosts))
		}
	}
}

// spread puts a workload's pods on different nodes.
func spread(app string) object {
	return object{"affinity": object{"podAntiAffinity": object{"requiredDuringSchedulingIgnoredDuringExecution": []object{{
		"topologyKey": "kubernetes.io/hostname", "labelSelector": object{"matchLabels": object{"app": app}},
	}}}}}
}

// flows watches traffic between the peer and pods, with the pods' nodes.
func (s *stage) flows(pods ...string) (*blackout.Flows, []tailnetNode) {
	s.t.Helper()
	nodes := s.awaitRunning(pods...)
	var places []blackout.Place
	for i, pod := range pods {
		places = append(places, blackout.Place{Name: pod, PID: s.pausePID(pod), Addr: nodes[i].IP4()})
	}
	peer := blackout.Place{Name: "peer", PID: s.peer.Process().PID(), Addr: s.peer.IP4}
	flows, err := blackout.Watch(s.ctx, peer, places, 10*time.Millisecond)
	s.must(err)
	return flows, nodes
}

// pausePID is the process that holds a pod's network namespace.
func (s *stage) pausePID(name string) int {
	s.t.Helper()
	facts, err := s.pod(name)
	s.must(err)
	cri := s.node(facts.Spec.NodeName).CRI()
	pods, err := cri.ListPods(s.ctx)
	s.must(err)
	for _, pod := range pods {
		if pod.Spec.UID == facts.Metadata.UID && pod.Ready {
			pod, err = cri.PodStatus(s.ctx, pod.ID)
			s.must(err)
			return pod.PID
		}
	}
	s.t.Fatalf("no sandbox of pod %s is ready", name)
	return 0
}

// silenceLimit is far above the gaps that have been seen, a tenth of a second, and above what two handshakes of WireGuard
// cost that cross, 5 s and TCP's patience; and below what a user would call an outage.
const silenceLimit = 15 * time.Second

// roll restarts the DaemonSets under traffic and prints the gaps. No connection breaks.
func roll(s *stage) {
	s.pair("a", "b")
	flows, before := s.flows("a", "b")
	for _, site := range install.Sites() {
		old, err := s.agent(site.Node)
		s.must(err)
		s.kubectl("rollout", "restart", "-n", site.Namespace, "daemonset/tailscale-nri")
		s.kubectl("rollout", "status", "-n", site.Namespace, "daemonset/tailscale-nri", "--timeout="+patience.String())
		if agent, err := s.agent(site.Node); err != nil || agent == old {
			s.t.Errorf("node %s is served by %q (%v), as before the roll", site.Node, agent, err)
		}
	}
	s.same(before, s.awaitRunning("a", "b"))
	s.must(flows.AwaitWell(s.ctx))
	for _, gap := range s.undisturbed(flows) {
		fmt.Printf("DaemonSet roll, longest silence of %v\n", gap)
	}
}
