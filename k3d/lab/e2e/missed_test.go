// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/scene"
)

// TestMissedPods: containers of pods that have started without the plugin are created when the pod has its link, and
// not before: the error says what keeps it from that.
func TestMissedPods(t *testing.T) {
	t.Parallel()
	s := open(t, "missed")
	const state = "/var/lib/tailscale-nri"
	node := func(name string, args ...string) {
		t.Helper()
		_, err := s.Lab.InNode(s.ctx, name, args...)
		s.must(err)
	}
	node("mkdir", "-p", state)
	node("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", state)
	missed := s.run("missed")
	wrong, err := s.RunSandbox(s.ctx, lab.PodSpec{Name: "wrong", Annotations: map[string]string{"tailscale.com/enabled": "yes please"}})
	s.must(err)
	s.start()
	s.must(s.Registered(s.ctx))
	for pod, texts := range map[*scene.Pod][]string{
		missed: {"tailscale-nri: pod default/missed", "read-only"},
		wrong:  {"tailscale-nri: pod default/wrong", "tailscale.com/enabled", "yes please", `say "true"`},
	} {
		_, err := s.Lab.CRI().RunContainer(s.ctx, pod.ID, lab.ContainerSpec{Name: "main"})
		for _, text := range texts {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: expected an error with %q, saw %v", pod.FullName(), text, err)
			}
		}
	}
	node("mount", "-o", "remount,rw", state)
	_, err = s.Lab.CRI().RunContainer(s.ctx, missed.ID, lab.ContainerSpec{Name: "main"})
	s.must(err)
	links, err := s.Lab.InPod(s.ctx, missed.ID, "ip", "-brief", "link", "show", "ts0")
	if err != nil || !strings.Contains(links, "ts0") {
		t.Errorf("the container was created before ts0 was there: %q, %v", links, err)
	}
	s.must(s.AwaitRunning(s.ctx, missed))
}

// TestHandover is a DaemonSet's roll with one pod more: the next process stands by while the last one serves, and goes
// on the moment that one has ended. Nodes and connections stay.
func TestHandover(t *testing.T) {
	t.Parallel()
	s := openServed(t, "handover")
	s.must(s.StartPeer(s.ctx))
	web, db := s.runServing("web"), s.runServing("db")
	was := fmt.Sprint(web.Node().NodeID, web.Node().Addresses)
	for i := range 3 {
		next := fmt.Sprintf("next%d.sock", i)
		waits, err := s.Survive(s.ctx, web, []scene.Place{s.AtPeer(), s.InPod(db)}, func(ctx context.Context) error {
			last := s.Plugin
			s.start("TS_STATUS_SOCKET=/run/tailscale-nri/" + next)
			s.must(s.AwaitLog(ctx, "standing by"))
			if out, err := s.Lab.InNode(ctx, "tailscale-nri", "ready", "-status-socket", "/run/tailscale-nri/"+next); err != nil || !strings.Contains(out, "standing by") {
				t.Errorf("ready says %q, %v", out, err)
			}
			begin := time.Now()
			if err := last.End(ctx, unix.SIGTERM); err != nil {
				return err
			}
			t.Logf("the last process was gone after %v", time.Since(begin).Round(time.Millisecond))
			return s.Registered(ctx)
		})
		s.must(err)
		t.Logf("the longest silence was %v from the peer, %v between pods", waits[0], waits[1])
		// Each pod of a DaemonSet has a socket of its own under the same name.
		dir := filepath.Join(s.Lab.NodeRun(), "tailscale-nri")
		s.must(os.Rename(filepath.Join(dir, next), filepath.Join(dir, "status.sock")))
		s.must(s.AwaitRunning(s.ctx, web))
	}
	if is := fmt.Sprint(web.Node().NodeID, web.Node().Addresses); is != was {
		t.Errorf("the node was %s, is %s", was, is)
	}
}
