// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
)

// podTools looks into a pod's node through the agent on its node, as kubectl exec does: with the container's
// capabilities, seccomp profile and mounts.
func podTools(s *stage) {
	nodes := s.pair("a", "b")
	agent, err := s.agent("n1")
	s.must(err)
	exec := []string{"exec", "-n", s.siteOf("n1").Namespace, agent, "--", "/tailscale-nri"}
	for _, tt := range []struct{ args, want string }{
		{"ping a " + nodes[1].name(), `^(pong from \S+ \([0-9.]+\) via DERP\(\S+\) in \S+\n)*pong from ` + nodes[1].name() + ` \(` + nodes[1].IP4().String() + `\) via [0-9.]+:\d+ in `},
		{"ping -icmp a " + nodes[1].IP4().String(), `via ICMP in`},
		{"whois default/a " + s.peer.IP4.String(), `^Machine:\n  Name:\s+peer`},
		{"netcheck a", `(?s)UDP: true.*UDP: true`},
		{"bugreport a", `(?s)container runtime containerd.*link +eth0 .*link +ts0 `},
	} {
		out, err := s.Kubectl(s.ctx, append(exec, strings.Fields(tt.args)...)...)
		if err != nil || !regexp.MustCompile(tt.want).MatchString(out) || strings.Contains(out, "not known: ") {
			s.t.Errorf("%s: %v\n%s", tt.args, err, out)
		}
	}
	s.capture(append(exec, "capture", "a"), nodes)
}

// capture captures until kubectl is killed, which ends nothing by itself.
func (s *stage) capture(args []string, nodes []tailnetNode) {
	cmd := s.KubectlCommand(s.ctx, args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	s.must(err)
	s.must(cmd.Start())
	pid := s.pausePID("a")
	taps := func(want int) func() error {
		return func() error {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/packet", pid))
			if n := bytes.Count(text, []byte("\n")) - 1; err == nil && n != want {
				err = fmt.Errorf("%d packet sockets in the pod, want %d", n, want)
			}
			return err
		}
	}
	s.eventually(taps(1))
	s.reaches("a", nodes[0].IP4(), nodes[1].IP4())
	head := make([]byte, 500) // more than the file's head
	if _, err := io.ReadFull(out, head); err != nil || !bytes.HasPrefix(head, []byte("\n\r\r\n")) {
		s.t.Errorf("got %q, %v", head[:4], err)
	}
	s.must(cmd.Process.Kill())
	if err := cmd.Wait(); err == nil {
		s.t.Error(errors.New("kubectl has ended before it was killed"))
	}
	// containerd goes on holding the pipe. Once that is full, the capture takes half a minute to see that its output is not read.
	s.eventually(func() error {
		s.reaches("a", nodes[0].IP4(), nodes[1].IP4())
		return taps(0)()
	})
}
