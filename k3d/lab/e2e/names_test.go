// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/scene"
)

// TestNames: the containers of a pod that asks for the tailnet's names have a resolv.conf that leads to its node and
// says what the cluster's says, as any user, also if the plugin is away when they start.
func TestNames(t *testing.T) {
	t.Parallel()
	s := openServed(t, "names")
	db := s.run("db")
	s.must(s.AwaitRunning(s.ctx, db))
	notes := scene.OptIn("tailscale.com/dns", "true", waitKey, "30s")
	containers := map[string]*scene.Pod{} // by ID
	find := func(id string) {
		t.Helper()
		if out := s.exec(id, "/labtool", "lookup", db.Node().DNSName); !strings.Contains(out, db.IP4().String()) {
			t.Errorf("%s resolves %s to %q, want %v", containers[id].FullName(), db.Node().DNSName, out, db.IP4())
		}
	}
	for _, spec := range []lab.PodSpec{{Name: "web", Annotations: notes}, {Name: "userns", UserNS: true, Annotations: notes}} {
		pod, err := s.RunSandbox(s.ctx, spec)
		s.must(err)
		for _, user := range []int64{0, 65534} {
			c := idle("main" + map[int64]string{0: "", 65534: "nobody"}[user])
			c.User = user
			id := s.runContainer(pod, c)
			conf := s.exec(id, "/labtool", "cat", "/etc/resolv.conf")
			if !strings.Contains(conf, "nameserver 100.100.100.100\n") || !strings.Contains(conf, "search svc.cluster.local") {
				t.Errorf("%s has the resolv.conf %q", pod.FullName(), conf)
			}
			containers[id] = pod
			find(id)
		}
	}
	// Between the creation of a container and its start the plugin goes away.
	late, err := s.RunSandbox(s.ctx, lab.PodSpec{Name: "late", Annotations: scene.OptIn("tailscale.com/dns", "true")})
	s.must(err)
	id, err := s.Lab.CRI().CreateContainer(s.ctx, late.ID, idle("main"))
	s.must(err)
	s.must(s.Plugin.End(s.ctx, unix.SIGTERM))
	begin := time.Now()
	s.must(s.Lab.CRI().StartContainer(s.ctx, id))
	t.Logf("started after %v without the plugin", time.Since(begin).Round(time.Millisecond))
	plain, err := s.RunSandbox(s.ctx, lab.PodSpec{Name: "plain"})
	s.must(err)
	want := s.exec(s.runContainer(plain, idle("main")), "/labtool", "cat", "/etc/resolv.conf")
	if got := s.exec(id, "/labtool", "cat", "/etc/resolv.conf"); got != want {
		t.Errorf("without the plugin resolv.conf is %q, want %q", got, want)
	}
	for id, pod := range containers {
		if out := s.exec(id, "/labtool", "lookup", db.Node().DNSName); strings.Contains(out, db.IP4().String()) {
			t.Errorf("%s resolves names of the tailnet without the plugin: %q", pod.FullName(), out)
		}
	}
	s.start()
	s.must(s.AwaitRunning(s.ctx, late))
	s.must(s.AwaitRunning(s.ctx, db))
	for id, pod := range containers {
		s.must(s.AwaitRunning(s.ctx, pod))
		find(id)
	}
}
