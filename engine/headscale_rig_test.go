// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"fmt"
	"path/filepath"
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
	hs *headscale.Server
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
	return &headscaleWorld{w, hs}
}

// key makes a reusable pre-auth key the world's way in, and returns its ID.
func (w *headscaleWorld) key(cfg headscale.KeyConfig) uint64 {
	w.t.Helper()
	cfg.Reusable = true
	id, secret, err := w.hs.CreateKey(w.t.Context(), cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.tailnet, err = tailnet.NewStatic(tailnet.StaticConfig{AuthKey: secret, ControlURL: w.hs.URL()})
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// start attaches a pod that asks for the tags.
func (w *headscaleWorld) start(name string, tags ...string) Pod {
	w.t.Helper()
	_, pod := w.pod(name)
	pod.Tags = tags
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

// awaitNodes waits until Headscale's list is as ok wants it.
func (w *headscaleWorld) awaitNodes(what string, ok func([]headscale.Node) bool) {
	w.t.Helper()
	var last []headscale.Node
	w.until(what, func() bool { last = w.nodes(); return ok(last) }, func() string { return fmt.Sprintf("%+v", last) })
}
