// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale-nri/k3d/lab/headscale"
)

// A pod comes in with a tagged key, and has the key's tags.
func TestHeadscaleJoin(t *testing.T) {
	for _, test := range []struct {
		name      string
		ephemeral bool
		after     string
	}{{"kept", false, "k8s-default-a expired"}, {"ephemeral", true, ""}} {
		t.Run(test.name, func(t *testing.T) {
			w := newHeadscaleWorld(t)
			w.key(headscale.KeyConfig{Tags: []string{"tag:k8s-pod"}, Ephemeral: test.ephemeral})
			w.boot()
			pod := w.start("a")
			node := w.await(pod.UID, Running)
			t.Logf("ready in %v", node.ReadyIn)
			nodes := w.nodes()
			if len(nodes) != 1 || !slices.Equal(nodes[0].Tags, []string{"tag:k8s-pod"}) {
				t.Errorf("nodes %+v", nodes)
			}
			w.Forget(t.Context(), pod.SandboxID)
			w.awaitForgotten(pod.UID)
			if got := describeNodes(w.nodes()); got != test.after {
				t.Errorf("in the end: %q, want %q", got, test.after)
			}
		})
	}
}

// Tags that a pod asks for come with the key or not at all: Headscale takes no
// request. A pod without them has no address, until it has them.
func TestHeadscaleTags(t *testing.T) {
	w := newHeadscaleWorld(t)
	w.key(headscale.KeyConfig{Tags: []string{"tag:k8s-pod", "tag:web"}})
	w.boot()
	has := w.start("has", "tag:web")
	lacks := w.start("lacks", "tag:db")
	w.await(has.UID, Running)
	w.reasonSays(lacks.UID, "tag:db", "tag:k8s-pod, tag:web", "Node.Tags", "StaticConfig.AuthKey")
	if ip, err := w.addressesOf(lacks); err != nil || len(ip) != 0 {
		t.Errorf("a pod that lacks its tag has %v (%v)", ip, err)
	}
	if n := w.nodes(); len(n) != 2 {
		t.Errorf("nodes %+v", n)
	}

	// It stays so over a restart, which lets in the one that has its tags.
	w.halt()
	w.boot()
	w.await(has.UID, Running)
	w.reasonSays(lacks.UID, "tag:db")
	if ip, err := w.addressesOf(lacks); err != nil || len(ip) != 0 {
		t.Errorf("after a restart, a pod that lacks its tag has %v (%v)", ip, err)
	}
	nodes := w.nodes()
	if len(nodes) != 2 {
		t.Errorf("after a restart: nodes %+v", nodes)
	}
	id := w.statusOf(lacks.UID).NodeID
	w.halt() // or the next try may be a minute away
	if _, err := w.hs.CLI(t.Context(), "policy", "set", "-f", w.file(`{"tagOwners":{"tag:db":["lab@"],"tag:web":["lab@"],"tag:k8s-pod":["lab@"]},"acls":[{"action":"accept","src":["*"],"dst":["*:*"]}]}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.hs.CLI(t.Context(), "nodes", "tag", "-i", id, "-t", "tag:db"); err != nil {
		t.Fatal(err)
	}
	w.boot()
	w.await(lacks.UID, Running)
	w.halt()
	w.boot() // and from now on its tags are the admin's
	w.await(lacks.UID, Running)
}

// A pod that is created again under its name gets a number for as long as the
// first device is there; an ephemeral device goes with its pod.
func TestHeadscaleRecreated(t *testing.T) {
	for _, test := range []struct {
		name      string
		ephemeral bool
		want      string
	}{
		{"kept", false, "k8s-default-web expired, k8s-default-web-1"},
		{"ephemeral", true, "k8s-default-web"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newHeadscaleWorld(t)
			w.key(headscale.KeyConfig{Tags: []string{"tag:k8s-pod"}, Ephemeral: test.ephemeral})
			w.boot()
			first := w.start("web")
			w.await(first.UID, Running)
			w.Forget(t.Context(), first.SandboxID)
			w.awaitForgotten(first.UID)

			_, second := w.pod("web")
			again(&second)
			second.Tags = nil
			w.mustAttach(second)
			w.await(second.UID, Running)
			if got := describeNodes(w.nodes()); got != test.want {
				t.Errorf("nodes: %s; want %s", got, test.want)
			}
		})
	}
}

// A node that Headscale deletes while it is cut off, as it does with an ephemeral
// one after its inactivity timeout, registers again.
func TestHeadscaleDeletedWhileAway(t *testing.T) {
	w := newHeadscaleWorld(t)
	w.key(headscale.KeyConfig{Tags: []string{"tag:k8s-pod"}, Ephemeral: true})
	w.boot()
	pod := w.start("web")
	before := w.await(pod.UID, Running)
	w.halt()
	if err := w.hs.Delete(t.Context(), w.nodes()[0].ID); err != nil {
		t.Fatal(err)
	}
	w.boot()
	w.until("the node is another device", func() bool {
		s := w.statusOf(pod.UID)
		return s.State == Running && s.NodeID != before.NodeID
	}, func() string { return w.statusOf(pod.UID).Reason })
	if got := describeNodes(w.nodes()); got != "k8s-default-web" {
		t.Errorf("nodes: %s", got)
	}
}

// A node that Headscale deletes while it runs is not told, and registers again all the
// same.
func TestHeadscaleDeletedWhileRunning(t *testing.T) {
	w := newHeadscaleWorld(t)
	w.key(headscale.KeyConfig{Tags: []string{"tag:k8s-pod"}})
	w.boot(func(cfg *Config) { cfg.recheckEvery = 4 * time.Second })
	pod := w.start("web")
	before := w.await(pod.UID, Running)
	if err := w.hs.Delete(t.Context(), w.nodes()[0].ID); err != nil {
		t.Fatal(err)
	}
	w.until("the node is another device", func() bool {
		s := w.statusOf(pod.UID)
		return s.State == Running && s.NodeID != before.NodeID
	}, func() string { return w.statusOf(pod.UID).Reason })
	if got := describeNodes(w.nodes()); got != "k8s-default-web" {
		t.Errorf("nodes: %s", got)
	}
}

// A tagged node that Headscale has expired is not renewed by any key: the reason
// names what is to be done, and that helps. So does its deletion.
func TestHeadscaleExpired(t *testing.T) {
	w := newHeadscaleWorld(t)
	w.key(headscale.KeyConfig{Tags: []string{"tag:k8s-pod"}})
	w.boot()
	pod := w.start("web")
	w.await(pod.UID, Running)
	id := w.nodes()[0].ID

	if err := w.hs.Expire(t.Context(), id, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	w.reasonSays(pod.UID, "expires at", "headscale nodes expire --identifier 1 --disable")
	if s := w.statusOf(pod.UID); s.State != Running {
		t.Errorf("it is %s an hour before its key ends", s.State)
	}
	if err := w.hs.Expire(t.Context(), id, time.Time{}); err != nil {
		t.Fatal(err)
	}
	w.reasonSays(pod.UID, "device 1 is expired", "headscale nodes expire --identifier 1 --disable")
	if s := w.statusOf(pod.UID); s.State != Pending {
		t.Errorf("it is %s with an expired key", s.State)
	}
	if err := w.hs.Unexpire(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	w.await(pod.UID, Running)
}

// A pre-auth key that has ended, or never was, is named with its variable.
func TestHeadscaleKeyEnded(t *testing.T) {
	w := newHeadscaleWorld(t)
	id := w.key(headscale.KeyConfig{Tags: []string{"tag:k8s-pod"}})
	if err := w.hs.ExpireKey(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	w.boot()
	pod := w.start("web")
	w.reasonSays(pod.UID, "StaticConfig.AuthKey", "make a reusable auth key")
	w.halt()
	w.tailnet = w.static("hskey-auth-abcdefghijkl-" + strings.Repeat("a", 64))
	w.boot()
	w.reasonSays(pod.UID, "StaticConfig.AuthKey", "make a reusable auth key")
}
