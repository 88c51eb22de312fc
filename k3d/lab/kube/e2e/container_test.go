// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"tailscale-nri/k3d/lab/control"
)

// containers wait for their pod's node, and read it with the stock command line: with the agent in a container of its
// own, and a kubelet that tries again or does not.
func containers(s *stage) {
	build, err := clusterConfig(s.t).Lab.BuildDir()
	s.must(err)
	binary, err := filepath.EvalSymlinks(filepath.Join(build, "bin", "tailscale-new"))
	s.must(err)
	asks := podSpec{
		name: "asks", node: "n1", annotations: enabled("tailscale.com/socket", "true", "tailscale.com/wait", "60s"),
		more:      object{"volumes": []object{{"name": "cli", "hostPath": object{"path": binary}}}},
		container: object{"volumeMounts": []object{{"name": "cli", "mountPath": "/tailscale", "readOnly": true}}},
	}
	s.apply(asks.object())
	s.awaitReady("asks")
	node := s.awaitRunning("asks")[0]
	if out := s.kubectl("exec", "asks", "--", "/tailscale", "ip", "-4"); strings.TrimSpace(out) != node.IP4().String() {
		s.t.Errorf("in the pod its address is %q, want %v", out, node.IP4())
	}

	s.must(s.plane.SetOutage(s.ctx, control.Refusing))
	up := func() { s.must(s.plane.SetOutage(s.ctx, control.Up)) }
	defer up()
	wait := func(name, most string, more object) podSpec {
		return podSpec{name: name, node: "n1", annotations: enabled("tailscale.com/wait", most), more: more}
	}
	s.apply(wait("again", "2s", nil).object(), wait("never", "2s", object{"restartPolicy": "Never"}).object(),
		wait("gone", "20s", nil).object())
	s.eventually(func() error {
		out, err := s.Kubectl(s.ctx, "describe", "pod", "again", "never")
		if err != nil {
			return err
		}
		return says(out, `annotation tailscale.com/wait is "2s": the pod's node is not up after that`, "StartError", "BackOff")
	})
	s.eventually(func() error {
		pod, err := s.pod("never")
		if err == nil && pod.Status.Phase != "Failed" {
			err = fmt.Errorf("never is %s", pod.Status.Phase)
		}
		return err
	})
	begin := time.Now()
	s.kubectl("delete", "pod", "gone", "--wait", "--timeout="+patience.String()) // the kubelet lets the wait end first
	s.t.Logf("a pod that waits is gone after %v", time.Since(begin).Round(100*time.Millisecond))
	up()
	s.awaitReady("again")
}
