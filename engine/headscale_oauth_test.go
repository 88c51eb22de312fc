// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale-nri/engine/internal/podstate"
	"tailscale-nri/engine/tailnet"
	"tailscale-nri/k3d/lab/control"
)

// inHeadscalesManner has the lab's control plane and API behave as Headscale's.
func inHeadscalesManner(cfg *control.Config) { cfg.Headscale = true }

// Over OAuth a pod joins with the tags that it asks for, since its key has them,
// and its device is deleted at its end.
func TestHeadscaleOverOAuth(t *testing.T) {
	w := newWorld(t, inHeadscalesManner)
	w.boot()
	_, pod := w.pod("web")
	pod.Tags = []string{"tag:web", "tag:k8s-pod"}
	w.mustAttach(pod)
	node := w.await(pod.UID, Running)
	d := w.control.Devices()
	if len(d) != 1 || !slices.Equal(d[0].Tags, pod.Tags) || d[0].ID != node.NodeID || strings.Trim(node.NodeID, "0123456789") != "" {
		t.Errorf("node %s, devices %+v", node.NodeID, d)
	}
	w.Forget(t.Context(), pod.SandboxID)
	w.awaitForgotten(pod.UID)
	if d := w.control.Devices(); len(d) != 0 {
		t.Errorf("devices left: %+v", d)
	}
}

// A device in Headscale's API has no mark, so none is known to be ours: nobody's
// is swept, and no name is taken from anybody.
func TestHeadscaleKeepsStrangers(t *testing.T) {
	w := newWorld(t, inHeadscalesManner)
	w.enter("k8s")
	w.boot()
	earlier := w.join("web")
	w.enter("k8s") // the first host has died
	w.age(earlier.NodeID, 30*24*time.Hour)
	log := &logged{t: t}
	w.boot(soon, log.log, func(c *Config) {
		c.SweepAfter, c.sweepFirst, c.sweepEvery = time.Hour, time.Millisecond, 10*time.Millisecond
	})
	later := w.join("web", again)
	w.asked()
	w.until("the name is given up", func() bool { return log.count("is not available") > 0 }, func() string { return "still asking" })
	if got := w.names(); got != "k8s-default-web k8s-default-web-1" {
		t.Errorf("devices %q", got)
	}
	if n := w.control.Counters().DevicesDeleted; n != 0 {
		t.Errorf("%d devices were deleted", n)
	}
	// The name is free once somebody has deleted the other device by hand.
	if err := w.control.Delete(earlier.NodeID); err != nil {
		t.Fatal(err)
	}
	n := w.find(later.SandboxID)
	n.keepName(t.Context(), "k8s-default-web-1", "k8s-default-web")
	w.awaitName(later.UID, "k8s-default-web")
}

// A node that an earlier version had request its tags by itself stays the device
// that it is, with its tags, once it requests none.
func TestTagsNoLongerRequested(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*control.Config)
	}{{"Tailscale", func(*control.Config) {}}, {"Headscale", inHeadscalesManner}} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, test.change)
			w.boot()
			node := w.join("web")
			w.halt()
			path := w.dir + "/uid-web/" + podstate.StateFile
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			advertised := advertise(t, data, "tag:k8s-pod")
			if err := os.WriteFile(path, advertised, 0o600); err != nil {
				t.Fatal(err)
			}
			w.boot()
			after := w.await(node.UID, Running)
			w.until("it requests no tags", func() bool {
				data, err := os.ReadFile(path)
				return err == nil && !bytes.Equal(data, advertised) && !bytes.Contains(prefsIn(t, data), []byte("tag:k8s-pod"))
			}, func() string { return "still advertised" })
			if after.NodeID != node.NodeID || !slices.Equal(after.Addresses, node.Addresses) {
				t.Errorf("it is %s %v, was %s %v", after.NodeID, after.Addresses, node.NodeID, node.Addresses)
			}
			if n := w.control.Counters().KeysMinted; n != 1 {
				t.Errorf("%d keys were minted", n)
			}
			if d := w.control.Devices(); len(d) != 1 || !slices.Equal(d[0].Tags, []string{"tag:k8s-pod"}) || d[0].Expired {
				t.Errorf("devices %+v", d)
			}
		})
	}
}

// A login server that is not Tailscale's and lets no node request tags: the key
// has them, or the pod waits without an address.
func TestTagsOfAStaticKey(t *testing.T) {
	w := newWorld(t, inHeadscalesManner)
	access, err := tailnet.NewStatic(tailnet.StaticConfig{AuthKey: w.control.NewReusableKey("tag:k8s-pod"), ControlURL: w.control.ControlURL()})
	if err != nil {
		t.Fatal(err)
	}
	w.tailnet = access
	w.boot()
	w.join("has")
	p, lacks := w.pod("lacks")
	lacks.Tags = []string{"tag:db"}
	w.mustAttach(lacks)
	w.reasonSays(lacks.UID, "tag:db", "tag:k8s-pod", "StaticConfig.AuthKey", "Node.Tags")
	if addrs, err := addresses(p); err != nil || slices.ContainsFunc(addrs, func(a string) bool { return !strings.HasPrefix(a, "fe80:") }) {
		t.Errorf("ts0 has %v (%v)", addrs, err)
	}
	if s := w.statusOf(lacks.UID); s.State != Pending || len(s.Addresses) != 0 {
		t.Errorf("status %+v", s)
	}
}

// prefsIn returns the preferences in a state file, which holds them as base64.
func prefsIn(t *testing.T, state []byte) []byte {
	t.Helper()
	_, prefs := findPrefs(t, state)
	return prefs
}

func findPrefs(t *testing.T, state []byte) (key string, prefs []byte) {
	t.Helper()
	var all map[string][]byte
	if err := json.Unmarshal(state, &all); err != nil {
		t.Fatal(err)
	}
	for key, value := range all {
		if bytes.Contains(value, []byte(`"WantRunning"`)) {
			return key, value
		}
	}
	t.Fatal("no preferences in the node's state")
	return "", nil
}

// advertise has the preferences in a state file request a tag.
func advertise(t *testing.T, state []byte, tag string) []byte {
	t.Helper()
	key, value := findPrefs(t, state)
	var prefs map[string]any
	var all map[string][]byte
	if err := errors.Join(json.Unmarshal(value, &prefs), json.Unmarshal(state, &all)); err != nil {
		t.Fatal(err)
	}
	prefs["AdvertiseTags"] = []string{tag}
	value, err := json.Marshal(prefs)
	if err != nil {
		t.Fatal(err)
	}
	all[key] = value
	out, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
