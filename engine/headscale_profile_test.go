// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"slices"
	"testing"

	"tailscale-nri/engine/tailnet"
	"tailscale-nri/k3d/lab/headscale"
)

// A real Headscale with a static key, and a profile whose tailnet has an API: each
// pod's end is what its own tailnet takes for one, and neither node is looked for in
// the other tailnet.
func TestHeadscaleBesideProfile(t *testing.T) {
	w := newHeadscaleWorld(t)
	w.key(headscale.KeyConfig{Tags: []string{"tag:k8s-pod"}, Ephemeral: true})
	srv, access := w.secondTailnet()
	w.boot(withProfile("prod", access))
	_, podA := w.world.pod("a")
	podA.Tags = nil
	_, podB := w.world.pod("b")
	podB.Features.Profile = "prod"
	w.mustAttach(podA)
	w.mustAttach(podB)
	a, b := w.await(podA.UID, Running), w.await(podB.UID, Running)
	// One that is ephemeral by its pod's word needs a key that says so.
	_, asks := w.world.pod("asks")
	asks.Tags, asks.Features.Ephemeral = nil, true
	w.mustAttach(asks)
	w.reasonSays(asks.UID, "a static auth key makes all nodes ephemeral, or none", "Node.Ephemeral")

	w.halt()
	w.boot(withProfile("prod", access))
	if is := w.await(podA.UID, Running); is.NodeID != a.NodeID || !slices.Equal(is.Addresses, a.Addresses) {
		t.Errorf("on Headscale the node is %s at %v, was %s at %v", is.NodeID, is.Addresses, a.NodeID, a.Addresses)
	}
	if is := w.await(podB.UID, Running); is.NodeID != b.NodeID {
		t.Errorf("in the profile's tailnet the node is %s, was %s", is.NodeID, b.NodeID)
	}
	ctx := context.Background()
	if err := errors.Join(w.Forget(ctx, podA.SandboxID), w.Forget(ctx, asks.SandboxID)); err != nil {
		t.Fatal(err)
	}
	w.awaitForgotten(podA.UID)
	w.awaitForgotten(asks.UID)
	nodes, err := w.hs.Nodes(ctx)
	if err != nil || len(nodes) != 0 || len(srv.Devices()) != 1 {
		t.Errorf("Headscale has %+v (%v), the profile's tailnet %d devices, want none and one", nodes, err, len(srv.Devices()))
	}
	if err := w.Forget(ctx, podB.SandboxID); err != nil {
		t.Fatal(err)
	}
	w.awaitForgotten(podB.UID)
	if d := srv.Devices(); len(d) != 0 {
		t.Errorf("the profile's tailnet has %+v", d)
	}
}

// What is wrong with a tailnet says whose it is, and stays what it is.
func TestProfileErrors(t *testing.T) {
	access, err := tailnet.NewStatic(tailnet.StaticConfig{AuthKey: "k"})
	if err != nil {
		t.Fatal(err)
	}
	api, err := tailnet.NewOAuth(tailnet.OAuthConfig{ClientID: "id", ClientSecret: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	e := &Engine{}
	ended, end := context.WithCancel(t.Context())
	end()
	for profile, prefix := range map[string]string{"": "", "prod": "in the tailnet of profile prod: "} {
		of := profiled{e, profile}
		_, err := steppedTailnet{access, of}.NewAuthKey(t.Context(), tailnet.Node{Hostname: "web", Ephemeral: true})
		var known *tailnet.Error
		if !errors.As(err, &known) || err.Error() != prefix+known.Error() {
			t.Errorf("%q: %v, want %q before %v", profile, err, prefix, known)
		}
		_, err = steppedAPI{api, of}.Devices(ended)
		if want := prefix + "listing devices: context canceled"; !errors.Is(err, context.Canceled) || err.Error() != want {
			t.Errorf("%q: %v, want %s", profile, err, want)
		}
	}
}
