// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab/blackout"
	"tailscale-nri/k3d/lab/control"
)

// hostTailscaled runs a stock tailscaled on a node, in kernel mode and with its firewall rules, while pods talk: nothing
// of theirs stands still when it comes and goes.
func hostTailscaled(s *stage) {
	s.pair("a", "b")
	flows, nodes := s.flows("a", "b")
	host := s.startHostTailscaled()
	if rules := s.ruleset("n1"); !strings.Contains(rules, "ts-input") {
		s.t.Error("the host's tailscaled has set no rules, so this test says nothing")
	}
	s.reaches("a", nodes[0].IP4(), nodes[1].IP4())
	s.reaches("b", nodes[1].IP4(), nodes[0].IP4())
	s.reachedFromPeer(nodes[0].IP4())
	for _, n := range nodes { // of its own node, and of the other
		page, err := readPage(s.node("n1").Exec(s.ctx, s.Lab.ToolPath(), "get", "-timeout", askPatience, urlOf(n.IP4())))
		s.must(err)
		if page.Remote.Addr() != host.addr {
			s.t.Errorf("pod %s was asked by %v, want %v, the node", n.Pod, page.Remote.Addr(), host.addr)
		}
	}
	serving := s.node("n1").Command(s.ctx, s.Lab.ToolPath(), "serve")
	s.must(serving.Start())
	defer func() {
		_ = serving.Process.Kill()
		_ = serving.Wait()
	}()
	s.eventually(func() error { _, err := s.fetchFromPeer(host.addr); return err })
	s.reaches("a", nodes[0].IP4(), host.addr)
	s.reaches("b", nodes[1].IP4(), host.addr)
	s.seen(s.doctor("n1"), "host's tailscaled", "ok", "with neither an exit node nor accepted routes")
	host.end()
	if rules := s.ruleset("n1"); strings.Contains(rules, "ts-input") {
		s.t.Error("the host's tailscaled has left rules")
	}
	s.undisturbed(flows)
}

// hostTailscale is a tailscaled that runs on a node.
type hostTailscale struct {
	addr netip.Addr
	end  func()
}

func (s *stage) startHostTailscaled() hostTailscale {
	s.t.Helper()
	const socket = "--socket=/run/host-tailscaled.sock"
	n1 := s.node("n1")
	daemon, err := n1.Start("tailscaled", "tailscaled", "--no-logs-no-support", "--statedir=/var/lib/host-tailscale", socket)
	s.must(err)
	key, err := s.plane.NewKey(s.ctx, "tag:k8s-pod")
	s.must(err)
	s.must(n1.WriteFile("authkey", []byte(key)))
	s.eventually(func() error {
		_, err := n1.Exec(s.ctx, "tailscale", socket, "up", "--auth-key=file:"+n1.Path("authkey"), "--hostname=host",
			"--login-server="+s.plane.ControlURL, "--accept-dns=false", "--timeout=30s")
		return err
	})
	out, err := n1.Exec(s.ctx, "tailscale", socket, "ip", "-4")
	s.must(err)
	end := func() {
		s.t.Helper()
		_, err := n1.Exec(s.ctx, "tailscale", socket, "logout")
		s.must(err)
		s.must(daemon.End(s.ctx, unix.SIGTERM))
		_, err = n1.Exec(s.ctx, "tailscaled", "--cleanup", socket)
		s.must(err)
		devices, err := s.plane.Devices(s.ctx)
		s.must(err)
		for _, d := range devices {
			if d.Hostname == "host" {
				s.must(s.plane.Delete(s.ctx, d.ID))
			}
		}
	}
	return hostTailscale{netip.MustParseAddr(strings.TrimSpace(out)), end}
}

// ruleset is the firewall of a node.
func (s *stage) ruleset(node string) string {
	s.t.Helper()
	out, err := s.node(node).Exec(s.ctx, "nft", "list", "ruleset")
	s.must(err)
	return out
}

// undisturbed ends flows, of which none may have been silent for long, or broken, and returns the gaps.
func (s *stage) undisturbed(flows *blackout.Flows) []blackout.Gap {
	s.t.Helper()
	gaps := flows.Close()
	for _, gap := range gaps {
		if longest := max(gap.In, gap.Out, gap.TCP); longest > silenceLimit || gap.Broken != nil {
			s.t.Errorf("longest silence, which may be %v, of %v", silenceLimit, gap)
		}
	}
	return gaps
}

// nodeFailures kills containerd and the kubelet of each node, which the pods do not notice, and then each node as a whole,
// from which they come back as the devices that they were.
func nodeFailures(s *stage) {
	before := s.pair("a", "b")
	// A pod whose sandbox the kubelet has not removed yet would be kept for ten minutes after a restart of containerd.
	s.awaitDevices(before...)
	s.killDaemons(before)
	before = append(before, s.pair("c", "d")...)
	s.reboot("n1", before[0], before[2])
	s.reboot("n2", before[1], before[3])
	s.reaches("a", before[0].IP4(), before[1].IP4())
	s.awaitDevices(before...)
}

// killDaemons kills what starts pods, and starts it again, while a and b talk.
func (s *stage) killDaemons(before []tailnetNode) {
	s.t.Helper()
	flows, _ := s.flows("a", "b")
	for _, node := range s.Nodes {
		s.must(node.StopKubelet(s.ctx))
		s.must(node.Runtime().Restart(s.ctx, unix.SIGKILL))
		s.must(node.StartKubelet(s.ctx))
	}
	s.same(before, s.awaitRunning("a", "b"))
	s.undisturbed(flows)
}

// reboot ends all that runs on a node at once, and starts it again.
func (s *stage) reboot(name string, before ...tailnetNode) {
	s.t.Helper()
	restarts := map[string]int{}
	for _, n := range before {
		facts, err := s.pod(n.Pod)
		s.must(err)
		restarts[n.Pod] = facts.Status.ContainerStatuses[0].RestartCount
	}
	s.must(s.node(name).Reboot(s.ctx))
	for _, n := range before {
		s.eventually(func() error {
			now, err := s.pod(n.Pod)
			if err == nil && now.Status.ContainerStatuses[0].RestartCount == restarts[n.Pod] {
				err = fmt.Errorf("pod %s has not been started again yet", n.Pod)
			}
			return err
		})
		s.awaitReady(n.Pod)
		s.same([]tailnetNode{n}, s.awaitRunning(n.Pod))
		s.reachedFromPeer(n.IP4())
	}
}

// same fails unless the nodes are still the same devices, with the same addresses.
func (s *stage) same(before, after []tailnetNode) {
	s.t.Helper()
	for i := range before {
		if after[i].NodeID != before[i].NodeID || !slices.Equal(after[i].Addresses, before[i].Addresses) {
			s.t.Errorf("pod %s was %v, and is %v", before[i].Pod, before[i], after[i])
		}
	}
}

// helmChart installs the chart on n1 with a static key, as for Headscale, and removes it again.
func helmChart(s *stage) {
	key, err := s.plane.NewReusableKey(s.ctx, "tag:k8s-pod")
	s.must(err)
	values, err := json.Marshal(object{
		"config":        object{"CLUSTER_NAME": "helm", "TS_LOGIN_SERVER": s.plane.ControlURL},
		"credentials":   object{"create": true, "authKey": key},
		"procNetns":     true, // which does on both nodes
		"workloadState": true,
		"policy":        object{"rules": []object{{"name": "databases", "allow": object{"features": []string{"identity"}}}}},
	})
	s.must(err)
	file := filepath.Join(s.Lab.Dir(), "values.json")
	s.must(os.WriteFile(file, values, 0o600))
	helm := func(args ...string) {
		s.t.Helper()
		cmd := s.Lab.NetCommand(s.ctx, "helm", append(args, "--namespace=helm-nri")...)
		cmd.Env = append(append(cmd.Env, s.ClientEnv()...), "HELM_CACHE_HOME="+s.Lab.Dir()+"/helm", "HELM_CONFIG_HOME="+s.Lab.Dir()+"/helm")
		if out, err := cmd.CombinedOutput(); err != nil {
			s.t.Fatalf("helm %s: %v: %s", args[0], err, out)
		}
	}
	helm("install", "tailscale-nri", filepath.Join(deployDir(s), "chart"), "--values="+file, "--create-namespace", "--wait", "--timeout="+patience.String())
	defer s.kubectl("delete", "namespace", "helm-nri", "--wait")
	s.apply(podSpec{name: "c", node: "n1", annotations: enabled()}.object())
	s.awaitReady("c")
	if c := s.awaitServedBy("helm-nri", "n1", "c"); c.name() != "helm-default-c" {
		s.t.Errorf("the pod is %s in the tailnet", c.name())
	}
	s.kubectl("delete", "pod", "c", "--wait")
	s.moveOrdinal("helm-nri")
	helm("uninstall", "tailscale-nri", "--wait")
}

// wrongOrder deletes the manifests while an annotated pod runs, which the README tells not to do. The pod keeps its link,
// which goes with it, and its device and keys wait for the plugin: nothing is lost once that is back.
func wrongOrder(s *stage) {
	s.apply(podSpec{name: "stays", node: "n1", annotations: enabled()}.object())
	s.awaitReady("stays")
	node := s.awaitRunning("stays")[0]
	s.must(s.install().Remove(s.ctx))
	n1 := s.node("n1")
	if left := s.links(n1.Exec(s.ctx, "ip", "-json", "link")); len(left) != 1 {
		s.t.Errorf("links on node n1 while an annotated pod runs: %q, want its one", left)
	}
	if _, err := os.Stat(n1.Path("lib", "tailscale-nri", node.UID)); err != nil {
		s.t.Errorf("the pod's identity: %v", err)
	}
	s.kubectl("delete", "pod", "stays", "--wait")
	s.eventually(func() error {
		if left := s.links(n1.Exec(s.ctx, "ip", "-json", "link")); len(left) > 0 {
			return fmt.Errorf("links on node n1 after the pod's end: %q", left)
		}
		return nil
	})
	devices, err := s.plane.Devices(s.ctx)
	s.must(err)
	if !slices.ContainsFunc(devices, func(d control.Device) bool { return d.ID == node.NodeID }) {
		s.t.Errorf("the pod's device has gone, without anybody to delete it")
	}
	s.must(s.install().Apply(s.ctx))
	s.awaitDevices()
}

// uninstall follows the README: the annotated pods go first, then the manifests.
func uninstall(s *stage) {
	s.awaitDevices()
	s.must(s.install().Remove(s.ctx))
	for _, node := range s.Nodes {
		if left := s.links(node.Exec(s.ctx, "ip", "-json", "link")); len(left) > 0 {
			s.t.Errorf("links left on node %s: %q", node.Name, left)
		}
		if _, err := os.Stat(node.Path("lib", "tailscale-nri")); err != nil {
			s.t.Errorf("the state of node %s was elsewhere, so this says nothing of it: %v", node.Name, err)
		}
		left, err := filepath.Glob(node.Path("lib", "tailscale-nri", "[^.]*")) // but for .hook, which the README names
		if err != nil || len(left) > 0 {
			s.t.Errorf("state left on node %s: %q, %v", node.Name, left, err)
		}
	}
	out := s.kubectl("get", "namespaces,daemonsets,mutatingadmissionpolicies,mutatingadmissionpolicybindings,validatingadmissionpolicies,"+
		"validatingadmissionpolicybindings,clusterroles,clusterrolebindings", "-A", "-o", "name")
	if strings.Contains(out, "tailscale-nri") {
		s.t.Errorf("left in the cluster: %s", out)
	}
}

// links are those of ours among what ip says.
func (s *stage) links(out string, err error) (ours []string) {
	s.t.Helper()
	s.must(err)
	var links []struct{ Ifname string }
	s.must(json.Unmarshal([]byte(out), &links))
	for _, l := range links {
		if strings.HasPrefix(l.Ifname, "vetht") {
			ours = append(ours, l.Ifname)
		}
	}
	return ours
}
