// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale-nri/engine/internal/nstest"
	"tailscale-nri/engine/tailnet"
	"tailscale-nri/k3d/lab/control"
	"tailscale-nri/k3d/lab/headscale"
)

// headscaleWorld is a world whose control plane is a real Headscale. The lab's
// own is there for DERP and STUN alone.
type headscaleWorld struct {
	*world
	hs   *headscale.Server
	pods map[string]*nstest.Pod // by UID
}

func newHeadscaleWorld(t *testing.T, change ...func(*headscale.Config)) *headscaleWorld {
	t.Helper()
	w := &world{t: t, dir: t.TempDir()}
	relay, err := control.Start(control.Config{Addr: nstest.HostAddr, Logger: testLogger(t, "relay")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(relay.Close)
	binary, err := filepath.Abs("../.build/bin/headscale")
	if err != nil {
		t.Fatal(err)
	}
	cfg := headscale.Config{Addr: nstest.HostAddr, Dir: t.TempDir(), Binary: binary, DERPMap: relay.DERPMap()}
	for _, f := range change {
		f(&cfg)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hs, err := headscale.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hs.Close() })
	t.Cleanup(func() { w.halt() })
	return &headscaleWorld{w, hs, map[string]*nstest.Pod{}}
}

// key makes a reusable pre-auth key the world's way in, and returns its ID.
func (w *headscaleWorld) key(cfg headscale.KeyConfig) uint64 {
	w.t.Helper()
	cfg.Reusable = true
	id, secret, err := w.hs.CreateKey(w.t.Context(), cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.tailnet = w.static(secret)
	return id
}

// static is the way in with a pre-auth key.
func (w *headscaleWorld) static(secret string) tailnet.Tailnet {
	w.t.Helper()
	access, err := tailnet.NewStatic(tailnet.StaticConfig{AuthKey: secret, ControlURL: w.hs.URL()})
	if err != nil {
		w.t.Fatal(err)
	}
	return access
}

// reasonSays waits until a node's reason has all the words.
func (w *world) reasonSays(uid string, words ...string) {
	w.t.Helper()
	w.until("the reason says why", func() bool {
		return !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(w.statusOf(uid).Reason, word) })
	}, func() string { return w.statusOf(uid).Reason })
}

// addressesOf are those on the pod's ts0 but for the link's own: none where the link
// was taken away.
func (w *headscaleWorld) addressesOf(pod Pod) (out []string, err error) {
	all, err := addresses(w.pods[pod.UID])
	if err != nil && strings.Contains(err.Error(), "no such network interface") {
		err = nil
	}
	for _, a := range all {
		if !strings.HasPrefix(a, "fe80:") {
			out = append(out, a)
		}
	}
	return out, err
}

// file holds a text.
func (w *headscaleWorld) file(text string) string {
	w.t.Helper()
	name := filepath.Join(w.t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return name
}

// describeNodes lists names, and which of them are expired.
func describeNodes(nodes []headscale.Node) string {
	var out []string
	for _, n := range nodes {
		name := n.Name
		if n.Expired() {
			name += " expired"
		}
		out = append(out, name)
	}
	return strings.Join(out, ", ")
}

// start attaches a pod that asks for the tags.
func (w *headscaleWorld) start(name string, tags ...string) Pod {
	w.t.Helper()
	p, pod := w.pod(name)
	pod.Tags = tags
	w.pods[pod.UID] = p
	w.mustAttach(pod)
	return pod
}

func (w *headscaleWorld) nodes() []headscale.Node {
	w.t.Helper()
	nodes, err := w.hs.Nodes(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return nodes
}
