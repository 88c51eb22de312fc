// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/internal/wait"
	"tailscale-nri/k3d/lab/kube"
)

const (
	// patience bounds a step; it is not an expectation. A kubelet backs off up to a minute before it tries again.
	patience = 3 * time.Minute
	// askPatience is how long labtool waits for its first answer. Two nodes that begin a handshake in the same instant
	// wait 5 s for their second handshake (WireGuard).
	askPatience = "20s"
	namespace   = "tailscale-nri"
	httpPort    = 8080
)

// stage is a cluster under test.
type stage struct {
	*kube.Cluster
	t     *testing.T // of the test under way
	ctx   context.Context
	plane *lab.ControlPlane
	peer  *lab.Peer
}

func clusterConfig(t *testing.T) kube.Config {
	t.Helper()
	const name = "tsnri-kube"
	return kube.Config{Lab: lab.Config{Name: name, Dir: "/run/" + name, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}}
}

// open brings up a cluster and its tailnet; both end with the test, and nothing of them remains.
func open(t *testing.T) *stage {
	t.Helper()
	cfg := clusterConfig(t)
	untouched := lookAtMachine()
	t.Cleanup(func() { untouched.compare(t) })
	cluster, err := kube.Up(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{Cluster: cluster, t: t, ctx: t.Context()}
	t.Cleanup(func() { s.end(t, cfg) })
	if s.plane, err = cluster.Lab.StartControl(t.Context()); err != nil {
		t.Fatal(err)
	}
	key, err := s.plane.NewKey(t.Context(), "tag:k8s-pod")
	s.must(err)
	s.peer, err = cluster.Lab.StartPeer(t.Context(), lab.PeerConfig{Name: "peer", LoginServer: s.plane.ControlURL, AuthKey: key})
	s.must(err)
	return s
}

func (s *stage) end(t *testing.T, cfg kube.Config) {
	if t.Failed() {
		s.keepLogs(t)
	}
	if err := s.Down(); err != nil {
		t.Error(err)
	}
	left, err := kube.Remains(cfg)
	if err != nil || len(left) > 0 {
		t.Errorf("left after the test: %q, %v", left, err)
	}
}

// keepLogs copies the lab's logs to where they outlive it.
func (s *stage) keepLogs(t *testing.T) {
	build, err := clusterConfig(t).Lab.BuildDir()
	if err != nil {
		t.Error(err)
		return
	}
	dir := filepath.Join(build, "e2e")
	os.RemoveAll(dir)
	for _, from := range []string{"log", "n1/log/pods", "n2/log/pods"} {
		if err := os.CopyFS(filepath.Join(dir, from), os.DirFS(filepath.Join(s.Lab.Dir(), from))); err != nil {
			t.Log(err)
		}
	}
	t.Logf("the logs are in %s", dir)
}

// play runs one test on the stage. The next one runs all the same, on whatever this one leaves.
func (s *stage) play(name string, test func(*stage)) {
	s.t.Helper()
	s.t.Run(name, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
		defer cancel()
		begin := time.Now()
		scene := *s
		scene.t, scene.ctx = t, ctx
		test(&scene)
		t.Logf("took %v", time.Since(begin).Round(100*time.Millisecond))
	})
}

// must ends the test on an error.
func (s *stage) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// kubectl runs it and ends the test when it fails.
func (s *stage) kubectl(args ...string) string {
	s.t.Helper()
	out, err := s.Kubectl(s.ctx, args...)
	s.must(err)
	return out
}

// apply applies objects and has them deleted at the end of the test, waiting for that.
func (s *stage) apply(objects ...object) {
	s.t.Helper()
	all := list(objects...)
	s.must(s.Apply(s.ctx, all))
	s.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		cmd := s.KubectlCommand(ctx, "delete", "--ignore-not-found", "--wait", "-f", "-")
		cmd.Stdin = strings.NewReader(all)
		if out, err := cmd.CombinedOutput(); err != nil {
			s.t.Errorf("deleting what the test has applied: %v: %s", err, out)
		}
	})
}

// eventually waits for check to return nil.
func (s *stage) eventually(check func() error) {
	s.t.Helper()
	s.within(patience, check)
}

func (s *stage) within(limit time.Duration, check func() error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, limit)
	defer cancel()
	s.must(wait.Until(ctx, 200*time.Millisecond, func(context.Context) error { return check() }))
}

// awaitReady returns when pods, as kubectl takes them, are ready.
func (s *stage) awaitReady(pods ...string) {
	s.t.Helper()
	for _, pod := range pods {
		s.kubectl("wait", "--for=condition=Ready", "--timeout="+patience.String(), "pod/"+pod)
	}
}

// node by its name.
func (s *stage) node(name string) *kube.Node {
	s.t.Helper()
	for _, n := range s.Nodes {
		if n.Name == name {
			return n
		}
	}
	s.t.Fatalf("no node %s", name)
	return nil
}

// tool runs labtool in a pod, as kubectl exec does.
func (s *stage) tool(pod string, args ...string) (string, error) {
	return s.Kubectl(s.ctx, append([]string{"exec", pod, "--", "/labtool"}, args...)...)
}

// page is what labtool's HTTP server says.
type page struct {
	Host   string              `json:"host"`
	Local  netip.AddrPort      `json:"local"`
	Remote netip.AddrPort      `json:"remote"`
	Addrs  map[string][]string `json:"addrs"`
}

func readPage(out string, err error) (p page, _ error) {
	if err != nil {
		return p, err
	}
	return p, json.Unmarshal([]byte(out), &p)
}

func urlOf(addr netip.Addr) string {
	return fmt.Sprintf("http://%s/", netip.AddrPortFrom(addr, httpPort))
}

// fetch asks from a pod for the page at addr.
func (s *stage) fetch(pod string, addr netip.Addr) (page, error) {
	return readPage(s.tool(pod, "get", "-timeout", askPatience, urlOf(addr)))
}

// fetchFromPeer is fetch, from the peer.
func (s *stage) fetchFromPeer(addr netip.Addr) (page, error) {
	return readPage(s.peer.Exec(s.ctx, s.Lab.ToolPath(), "get", "-timeout", askPatience, urlOf(addr)))
}
