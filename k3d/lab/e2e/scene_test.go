// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/control"
	"tailscale-nri/k3d/lab/internal/wait"
	"tailscale-nri/k3d/lab/scene"
)

// patience bounds a test's steps; it is not an expectation.
const patience = 3 * time.Minute

// config is a lab apart from any other.
func config(t *testing.T, name string) lab.Config {
	t.Helper()
	name = "tsnri-e2e-" + name
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	return lab.Config{Name: name, Dir: "/run/" + name, Logger: log}
}

// stage is a scene under test.
type stage struct {
	*scene.Scene
	t     *testing.T
	ctx   context.Context
	plane *lab.ControlPlane
}

// open builds a lab that ends with the test, of which nothing may remain. The plugin is not started yet.
func open(t *testing.T, name string) *stage {
	t.Helper()
	cfg := config(t, name)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	scene, err := scene.Open(ctx, scene.Config{Lab: cfg})
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{Scene: scene, t: t, ctx: ctx}
	t.Cleanup(func() { s.end(cfg) })
	if s.plane, err = scene.Lab.Control(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

// openServed is open with the plugin registered.
func openServed(t *testing.T, name string, env ...string) *stage {
	t.Helper()
	s := open(t, name)
	s.start(env...)
	s.must(s.Registered(s.ctx))
	return s
}

func (s *stage) end(cfg lab.Config) {
	if s.t.Failed() {
		for _, name := range []string{"plugin", "control"} {
			log, _ := os.ReadFile(filepath.Join(s.Lab.Dir(), "log", name+".log"))
			s.t.Logf("the end of %s's log:\n%s", name, log[max(0, len(log)-16<<10):])
		}
	}
	if err := s.Close(context.Background()); err != nil {
		s.t.Error(err)
	}
	left, err := lab.Remains(cfg)
	if err != nil || len(left) > 0 {
		s.t.Errorf("left after the test: %q, %v", left, err)
	}
}

// must ends the test on an error.
func (s *stage) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// start starts the plugin.
func (s *stage) start(env ...string) {
	s.t.Helper()
	s.must(s.StartPlugin(env...))
}

// run makes a bare sandbox that has opted in.
func (s *stage) run(name string) *scene.Pod {
	s.t.Helper()
	pod, err := s.RunSandbox(s.ctx, lab.PodSpec{Name: name, Annotations: scene.OptIn()})
	s.must(err)
	return pod
}

// runServing makes a pod that serves and waits for its node.
func (s *stage) runServing(name string) *scene.Pod {
	s.t.Helper()
	pod, err := s.RunPod(s.ctx, lab.PodSpec{Name: name, Annotations: scene.OptIn()})
	s.must(err)
	s.must(s.AwaitRunning(s.ctx, pod))
	return pod
}

// awaitPending returns when the node is pending and its reason holds text.
func (s *stage) awaitPending(pod *scene.Pod, text string) {
	s.t.Helper()
	_, err := s.AwaitNode(s.ctx, pod, func(n scene.Node) error {
		if n.State != "Pending" || !strings.Contains(n.Reason, text) {
			return fmt.Errorf("node of %s: expected state Pending for %q, saw %s: %s", pod.FullName(), text, n.State, n.Reason)
		}
		return nil
	})
	s.must(err)
}

// eventually waits for check to return nil.
func (s *stage) eventually(check func() error) {
	s.t.Helper()
	s.must(wait.Until(s.ctx, 20*time.Millisecond, func(context.Context) error { return check() }))
}

// awaitCalls returns when the API has had n calls since it was started.
func (s *stage) awaitCalls(n int) {
	s.t.Helper()
	s.eventually(func() error {
		if now := s.calls(); now < n {
			return fmt.Errorf("expected %d calls of the API, saw %d", n, now)
		}
		return nil
	})
}

// calls of the API so far.
func (s *stage) calls() int {
	s.t.Helper()
	counters, err := s.plane.Counters(s.ctx)
	s.must(err)
	return counters.Calls
}

func (s *stage) outage(o control.Outage) {
	s.t.Helper()
	s.must(s.plane.SetOutage(s.ctx, o))
}

// status is what the plugin's own command says. It ends with 1 where something is not Running.
func (s *stage) status(args ...string) string {
	s.t.Helper()
	out, err := s.Lab.InNode(s.ctx, "tailscale-nri", append([]string{"status"}, args...)...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		s.must(err)
	}
	return out
}
