// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab/internal/wait"
	"tailscale-nri/k3d/lab/scene"
)

// awaitMetrics waits until a scrape on the node has all of these series, with these values, and none of the others.
func (s *stage) awaitMetrics(addr, none string, want ...string) (body string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
	defer cancel()
	s.must(wait.Until(ctx, 100*time.Millisecond, func(ctx context.Context) (err error) {
		body, err = s.Lab.InNode(ctx, s.Lab.ToolPath(), "get", "http://"+addr+"/metrics")
		var missing []string
		for _, line := range want {
			if !strings.Contains(body, "\ntailscale_nri_"+line+"\n") {
				missing = append(missing, line)
			}
		}
		if err != nil || len(missing) > 0 || none != "" && strings.Contains(body, none) {
			return fmt.Errorf("a scrape lacks %q, or has %q, or failed (%v):\n%s", missing, none, err, body)
		}
		return nil
	}))
	return body
}

// TestMetrics follows pods of a real containerd through what the plugin says to Prometheus: their start and their
// packets, a pod that starts while the plugin is away, and their end.
func TestMetrics(t *testing.T) {
	t.Parallel()
	const addr = "127.0.0.1:9464"
	s := openServed(t, "metrics", "TS_METRICS_ADDR="+addr)
	s.must(s.StartPeer(s.ctx))
	web := s.runServing("web")
	_, err := s.Fetch(s.ctx, s.AtPeer(), web.IP4())
	s.must(err)
	pod := fmt.Sprintf(`namespace=%q,pod=%q`, web.Spec.Namespace, web.Spec.Name)
	body := s.awaitMetrics(addr, "", "registered 1", "pod_up{"+pod+"} 1", "pod_control_connected{"+pod+"} 1",
		`nodes{state="Running"} 1`, `hook_duration_seconds_count{event="RunPodSandbox",result="ok"} 1`,
		`registrations_total{kind="first"} 1`, "ready_duration_seconds_count 1", "pod_wireguard_sessions{"+pod+"} 1")
	for _, direction := range []string{"in", "out"} {
		if !strings.Contains(body, fmt.Sprintf(`pod_bytes_total{direction=%q,namespace=%q,path="direct",pod=%q}`, direction, web.Spec.Namespace, web.Spec.Name)) {
			t.Errorf("no bytes %s", direction)
		}
	}

	s.must(s.Plugin.End(s.ctx, unix.SIGTERM))
	late := s.run("late")
	s.start("TS_METRICS_ADDR=" + addr)
	s.must(s.Registered(s.ctx))
	s.must(s.AwaitRunning(s.ctx, late))
	s.awaitMetrics(addr, "", `late_attaches_total{by="list"} 1`, `nodes{state="Running"} 2`, "pod_up{"+pod+"} 1")

	for _, p := range []*scene.Pod{web, late} {
		s.must(s.RemovePod(s.ctx, p))
	}
	s.awaitMetrics(addr, pod, `nodes{state="Running"} 0`, `devices_deleted_total{reason="pod_ended"} 2`,
		`hook_duration_seconds_count{event="RemovePodSandbox",result="ok"} 2`)
}
