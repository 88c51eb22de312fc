// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"tailscale-nri/k3d/lab/kube/install"
)

// viewer is a user who may look after the plugin on n1, and nothing else.
const viewer = "viewer"

// plugin runs kubectl tailscale-nri as a user does, with the lab's kubectl, and returns its output and its exit code.
func (s *stage) plugin(args ...string) (stdout, stderr string, code int) {
	s.t.Helper()
	cmd := s.KubectlCommand(s.ctx, append([]string{"tailscale-nri"}, args...)...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		s.must(err)
	}
	return out.String(), said.String(), code
}

// shows fails unless the plugin ends with that exit code, and some line of its output holds each of these texts, which are
// cells of the line, in their order.
func (s *stage) shows(args string, code int, lines ...string) (stdout string) {
	s.t.Helper()
	out, said, got := s.plugin(strings.Fields(args)...)
	if got != code {
		s.t.Errorf("kubectl tailscale-nri %s ends with %d, want %d:\n%s%s", args, got, code, out, said)
	}
	for _, want := range lines {
		found := false
		for line := range strings.Lines(out + said) {
			found = found || strings.Contains(strings.Join(strings.Fields(line), " "), want)
		}
		if !found {
			s.t.Errorf("kubectl tailscale-nri %s has no line with %q:\n%s%s", args, want, out, said)
		}
	}
	return out
}

// kubectlPlugin shows the pods of both hosts in one table: in good days, during a roll that stops, for who may see little,
// and while a host has no agent.
func kubectlPlugin(s *stage) {
	out, err := s.KubectlCommand(s.ctx, "plugin", "list").CombinedOutput()
	s.must(err)
	if !strings.Contains(string(out), "/kubectl-tailscale_nri") || strings.Contains(string(out), "warning") {
		s.t.Errorf("kubectl plugin list says\n%s", out)
	}
	nodes := s.pair("a", "b")
	s.apply(podSpec{name: "plain", node: "n1"}.object())
	s.awaitReady("plain")
	s.awaitDevices(nodes...) // earlier pods of the hosts are listed until they are gone

	out1, out2 := "n1 default/a Running lab1-default-a "+nodes[0].IP4().String(), "n2 default/b Running lab2-default-b "+nodes[1].IP4().String()
	s.t.Log("\n" + s.shows("status", 0, "HOST POD STATE", out1, out2))
	s.shows("status b -o wide", 0, out2, "tag:k8s-pod")
	s.shows("status plain", 1, "n1 default/plain NoNode")
	s.shows("status default/none", 2, "NotFound")
	s.shows("status --timeout 1ms", 2, "n1: agent tailscale-nri/", "does not answer: no answer within 1ms", "n2 default/b Unknown")
	s.hostsInJSON(nodes)
	s.t.Log("\n" + s.shows("doctor", 0, "HOST CHECK RESULT", "n1 - ok", "n2 - ok"))
	s.t.Log("\n" + s.shows("version", 0, "kubectl tailscale-nri", "n1 "+namespace+"/tailscale-nri-", "n2 "+s.siteOf("n2").Namespace+"/tailscale-nri-", "tailscale-nri:dev"))

	s.passedOn(nodes[1])
	s.stoppedRoll(out1)
	s.littleRights(out1)
	s.hostWithoutAgent(out2)
}

// hostsInJSON wants the hosts and their nodes as scripts read them.
func (s *stage) hostsInJSON(nodes []tailnetNode) {
	s.t.Helper()
	var all struct {
		APIVersion string
		Hosts      []struct {
			Host, Version string
			Ready         bool
			Nodes         []tailnetNode
		}
	}
	s.must(json.Unmarshal([]byte(s.shows("status -o json -l x!=y", 0)), &all))
	if len(all.Hosts) != 2 || all.APIVersion == "" {
		s.t.Fatalf("not two hosts: %+v", all)
	}
	for i, host := range all.Hosts {
		if host.Host != fmt.Sprintf("n%d", i+1) || !host.Ready || host.Version == "" || len(host.Nodes) != 1 || host.Nodes[0].IP4() != nodes[i].IP4() {
			s.t.Errorf("got %+v, want node %+v", host, nodes[i])
		}
	}
}

// passedOn are the agent's tools, for a pod of whichever host, with their exit codes and every byte of their output.
func (s *stage) passedOn(other tailnetNode) {
	s.t.Helper()
	addr := other.IP4().String()
	s.t.Log("\n" + s.shows("ping a -tsmp "+addr, 0, "pong from lab2-default-b ("+addr+")"))
	s.shows("whois default/a "+addr, 0, "Name: lab2-default-b.")
	s.shows("whois b 100.100.1.1", 1, "100.100.1.1 is not the address of a peer")
	s.shows("ping a", 2, "ping takes 2 arguments")

	captured := make(chan []byte, 1)
	go func() {
		out, _, _ := s.plugin("capture", "b", "-c", "2", "-d", "60s", "-w", "-")
		captured <- []byte(out)
	}()
	for {
		s.plugin("ping", "a", "-icmp", addr)
		select {
		case out := <-captured:
			if !bytes.HasPrefix(out, []byte("\x0a\x0d\x0d\x0a")) || !bytes.Contains(out, other.IP4().AsSlice()) {
				s.t.Errorf("the capture is no pcapng of what goes to %v: %q", addr, out)
			}
			return
		case <-s.ctx.Done():
			s.t.Fatal("the capture of two packets does not end")
		default:
		}
	}
}

// stoppedRoll is one to an image that is not to be had: the agent that serves answers, and what became of the other is said.
func (s *stage) stoppedRoll(line string) {
	s.t.Helper()
	s.kubectl("set", "image", "-n", namespace, "daemonset/tailscale-nri", "tailscale-nri=none.invalid/none:1")
	s.eventually(func() error {
		out, said, code := s.plugin("status", "a")
		if code != 0 {
			return fmt.Errorf("it ends with %d: %s%s", code, out, said)
		}
		return says(strings.Join(strings.Fields(out), " "), line, "n1: agent tailscale-nri/", "does not answer: ")
	})
	s.kubectl("rollout", "undo", "-n", namespace, "daemonset/tailscale-nri")
	s.kubectl("rollout", "status", "-n", namespace, "daemonset/tailscale-nri", "--timeout="+patience.String())
	s.shows("status a", 0, line)
}

// littleRights are those that the guide asks for, in the namespace of one DaemonSet.
func (s *stage) littleRights(line string) {
	s.t.Helper()
	name := object{"name": viewer, "namespace": namespace}
	s.apply(object{
		"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": name,
		"rules": []object{
			{"apiGroups": []string{""}, "resources": []string{"pods"}, "verbs": []string{"get", "list"}},
			{"apiGroups": []string{""}, "resources": []string{"pods/exec"}, "verbs": []string{"create"}},
		},
	}, object{
		"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": name,
		"roleRef":  object{"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": viewer},
		"subjects": []object{{"kind": "User", "name": viewer}},
	})
	s.shows("status --as "+viewer, 0, line, "hosts without an agent are not looked for", "pods that opted in and have no node are not looked for")
	s.shows("status --as "+viewer+" --agent-namespace "+s.siteOf("n2").Namespace, 2, "looking for agents", "(Forbidden)")
	s.shows("status --as nobody", 2, "looking for agents", "(Forbidden)")
}

// hostWithoutAgent has the DaemonSet of n1 run nowhere for a while.
func (s *stage) hostWithoutAgent(other string) {
	s.t.Helper()
	const path = "/spec/template/spec/nodeSelector/kubernetes.io~1hostname"
	move := func(to string) {
		s.t.Helper()
		s.kubectl("patch", "daemonset", "-n", namespace, install.Name, "--type=json", "-p",
			fmt.Sprintf(`[{"op":"replace","path":%q,"value":%q}]`, path, to))
	}
	agent, err := s.agent("n1")
	s.must(err)
	move("nowhere")
	s.kubectl("wait", "--for=delete", "-n", namespace, "pod/"+agent, "--timeout="+patience.String())
	s.t.Log("\n" + s.shows("status", 1, other, "n1 default/a NoNode", "its host has no agent", "n1: no agent is there"))
	s.shows("doctor --node n1", 2, "host n1 has no agent")
	s.shows("doctor", 0, "n1 agent warn no agent is there", "remedy: ", "n2 - ok")
	move("n1")
	s.eventually(func() error { _, err := s.agent("n1"); return err })
	s.awaitRunning("a")
	s.shows("status a", 0, "n1 default/a Running")
}
