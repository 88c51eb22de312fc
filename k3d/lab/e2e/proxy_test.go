// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/scene"
)

// TestProxy has the node reach nothing of the tailnet's but through an HTTP proxy that asks for a password: the API, the
// control server and DERP, by which alone a peer then reaches the pod. The password is in no log.
func TestProxy(t *testing.T) {
	t.Parallel()
	const user, password, port = "nri", "s3cret-pr0xy", "3128"
	s := open(t, "proxy")
	s.must(s.StartPeer(s.ctx))
	proxy, err := s.Lab.StartNet("proxy", "env", "PROXY_AUTH="+user+":"+password, s.Lab.ToolPath(), "proxy", lab.NetIP4+":"+port)
	s.must(err)
	for _, rule := range [][]string{
		{"pref", "4", "to", lab.NetIP4, "ipproto", "tcp", "dport", port, "lookup", "main"},
		{"pref", "5", "to", lab.NetIP4, "unreachable"},
	} {
		_, err := s.Lab.InNode(s.ctx, "ip", append([]string{"rule", "add"}, rule...)...)
		s.must(err)
	}
	if s.Peer.IP4.IsValid() { // no way from the peer to the node either
		_, err := s.Lab.InNode(s.ctx, "ip", "rule", "add", "pref", "6", "ipproto", "udp", "unreachable")
		s.must(err)
	}
	at := "@" + lab.NetIP4 + ":" + port
	through := func(credentials string) []string {
		return []string{"HTTPS_PROXY=http://" + credentials + at, "HTTP_PROXY=http://" + credentials + at, "NO_PROXY=192.0.2.1", "LOG_LEVEL=debug"}
	}
	s.start(through(user + ":wrong-" + password)...)
	s.must(s.Registered(s.ctx))
	pod, err := s.RunPod(s.ctx, lab.PodSpec{Name: "web", Annotations: scene.OptIn()})
	s.must(err)
	s.awaitPending(pod, "Proxy Authentication Required")
	t.Log(s.status())
	s.must(s.Plugin.Kill(s.ctx))
	s.start(through(user + ":" + password)...)
	s.must(s.AwaitRunning(s.ctx, pod))
	s.must(s.FetchAs(s.ctx, s.AtPeer(), s.Peer.IP4, pod, pod.IP4()))
	out, err := s.Doctor(s.ctx, through(user+":"+password), "-json")
	s.must(err)
	var findings []finding
	s.must(json.Unmarshal([]byte(out), &findings))
	for _, check := range []string{"credentials", "control plane", "clock", "proxy", "DERP"} {
		expectFinding(t, findings, check, "ok", "")
	}
	if strings.Contains(out, password) {
		t.Errorf("the doctor shows the password:\n%s", out)
	}
	logs := filepath.Join(s.Lab.Dir(), "log")
	said, err := os.ReadFile(filepath.Join(logs, "proxy.log"))
	s.must(err)
	for _, want := range []string{"refused", "forward " + lab.NetIP4 + ":8080 /ts2021", "forward " + lab.NetIP4 + ":8081 /api/v2/oauth/token", "connect " + lab.NetIP4} {
		if !strings.Contains(string(said), want) {
			t.Errorf("the proxy was not asked for %q:\n%s", want, said)
		}
	}
	log, err := os.ReadFile(filepath.Join(logs, "plugin.log"))
	s.must(err)
	// "nri:s3cret-pr0xy", as it stands in the header.
	for _, secret := range []string{password, "bnJpOnMzY3JldC1wcjB4eQ"} {
		if strings.Contains(string(log)+s.status(), secret) {
			t.Errorf("%q is in the log or in the status", secret)
		}
	}
	if want := fmt.Sprintf("proxy=%s:%s", lab.NetIP4, port); !strings.Contains(string(log), want) {
		t.Errorf("the log does not say %q", want)
	}
	s.must(proxy.Kill(s.ctx))
}
