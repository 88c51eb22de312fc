// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale.com/tailcfg"

	"tailscale-nri/engine/internal/nstest"
	"tailscale-nri/engine/internal/podstate"
	"tailscale-nri/engine/tailnet"
	"tailscale-nri/k3d/lab/control"
)

// secondTailnet is another control plane, with credentials for its nodes.
func (w *world) secondTailnet() (*control.Server, tailnet.Tailnet) {
	w.t.Helper()
	srv, err := control.Start(control.Config{Addr: nstest.HostAddr, Logger: testLogger(w.t, "control 2")})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(srv.Close)
	tn, err := tailnet.NewOAuth(tailnet.OAuthConfig{
		ClientID: "lab-client", ClientSecret: "lab-secret",
		BaseURL: srv.APIURL(), ControlURL: srv.ControlURL(), Logger: testLogger(w.t, "tailnet 2"),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return srv, tn
}

// withProfile has an engine know the tailnet under the name.
func withProfile(name string, tn tailnet.Tailnet) func(*Config) {
	return func(c *Config) { c.Profiles = map[string]tailnet.Tailnet{name: tn} }
}

// serveName answers on TCP port 7 of every address of the pod with a name.
func serveName(t *testing.T, p *nstest.Pod, name string) {
	t.Helper()
	var ln net.Listener
	p.Do(func() (err error) {
		ln, err = net.Listen("tcp", ":7")
		return err
	})
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, name)
			c.Close()
		}
	}()
}

// whoAnswers returns the name of the pod that from reaches at an address.
func whoAnswers(from *nstest.Pod, to netip.Addr, patience time.Duration) string {
	var c net.Conn
	var err error
	from.Do(func() error {
		c, err = net.DialTimeout("tcp", netip.AddrPortFrom(to, 7).String(), patience)
		return nil
	})
	if err != nil {
		return "nobody"
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	name, err := io.ReadAll(c)
	if err != nil {
		return err.Error()
	}
	return string(name)
}

// Two tailnets have the same addresses and the same device IDs. Pods of one host
// that are in one and the other do not meet, whether or not packets between pods are
// handed over inside the engine, and each device is deleted in its own.
func TestProfiles(t *testing.T) {
	for _, noLocal := range []bool{false, true} {
		t.Run(fmt.Sprint("noLocal=", noLocal), func(t *testing.T) {
			w := newWorld(t)
			srv, tn := w.secondTailnet()
			w.boot(withProfile("prod", tn), func(c *Config) { c.NoLocalDelivery = noLocal })
			pods, specs, nodes := map[string]*nstest.Pod{}, map[string]Pod{}, map[string]NodeStatus{}
			for _, name := range []string{"a1", "b1", "a2", "b2", "c2"} {
				p, pod := w.pod(name)
				if strings.HasSuffix(name, "2") {
					pod.Features.Profile = "prod"
				}
				serveName(t, p, name)
				w.mustAttach(pod)
				pods[name], specs[name], nodes[name] = p, pod, w.await(pod.UID, Running)
			}
			for _, n := range []string{"a", "b"} {
				one, two := nodes[n+"1"], nodes[n+"2"]
				if !slices.Equal(one.Addresses, two.Addresses) || one.NodeID != two.NodeID {
					t.Fatalf("%s has %v and %v (%s and %s): this is to be a test of two that are alike", n, one.Addresses, two.Addresses, one.NodeID, two.NodeID)
				}
			}
			for _, tt := range []struct{ from, to, want string }{
				{"a1", "b1", "b1"}, {"a2", "b2", "b2"}, {"b1", "a2", "a1"}, {"b2", "a1", "a2"}, {"a2", "c2", "c2"}, {"a1", "c2", "nobody"},
			} {
				for i, addr := range nodes[tt.to].Addresses {
					patience := 10 * time.Second
					if tt.want == "nobody" {
						patience = time.Second
					}
					if got := whoAnswers(pods[tt.from], addr, patience); got != tt.want {
						t.Errorf("%s reaches %s at %v (%d), want %s", tt.from, got, addr, i, tt.want)
					}
				}
			}
			if local := w.statusOf(specs["b2"].UID).LocalIn.Packets; (local > 0) == noLocal {
				t.Errorf("b2 got %d packets without WireGuard", local)
			}
			if one, two := len(w.control.Devices()), len(srv.Devices()); one != 2 || two != 3 {
				t.Fatalf("%d and %d devices, want 2 and 3", one, two)
			}
			if err := w.Forget(context.Background(), specs["a2"].SandboxID); err != nil {
				t.Fatal(err)
			}
			w.awaitForgotten(specs["a2"].UID)
			if one, two := len(w.control.Devices()), len(srv.Devices()); one != 2 || two != 2 {
				t.Errorf("%d and %d devices after the end of one in the second tailnet, want 2 and 2", one, two)
			}
		})
	}
}

// A node whose profile is gone from the configuration goes on. At its pod's end its
// device is not deleted, since no other tailnet's API may be asked. It is deleted once
// the profile is back.
func TestProfileGone(t *testing.T) {
	w := newWorld(t)
	srv, tn := w.secondTailnet()
	w.boot(withProfile("prod", tn))
	_, other := w.pod("other")
	w.mustAttach(other)
	w.await(other.UID, Running)
	_, pod := w.pod("a")
	pod.Features.Profile = "prod"
	w.mustAttach(pod)
	before := w.await(pod.UID, Running)

	w.halt()
	w.boot()
	w.mustAttach(pod)
	if after := w.await(pod.UID, Running); after.NodeID != before.NodeID || after.Addresses[0] != before.Addresses[0] {
		t.Errorf("the node is %s at %v, was %s at %v", after.NodeID, after.Addresses, before.NodeID, before.Addresses)
	}
	_, late := w.pod("late")
	late.Features.Profile = "prod"
	w.mustAttach(late)
	w.reasonSays(late.UID, `no longer has the profile "prod"`, `put Config.Profiles["prod"] back`)
	ctx := context.Background()
	if err := errors.Join(w.Forget(ctx, pod.SandboxID), w.Forget(ctx, late.SandboxID)); err != nil {
		t.Fatal(err)
	}
	w.awaitForgotten(late.UID) // which has never been a device
	w.reasonSays(pod.UID, `no longer has the profile "prod"`, `put Config.Profiles["prod"] back`)
	if one, two := len(w.control.Devices()), len(srv.Devices()); one != 1 || two != 1 {
		t.Errorf("%d and %d devices, want one each", one, two)
	}

	w.halt()
	w.boot(withProfile("prod", tn))
	w.awaitForgotten(pod.UID)
	if one, two := len(w.control.Devices()), len(srv.Devices()); one != 1 || two != 0 {
		t.Errorf("%d and %d devices once the profile is back, want one and none", one, two)
	}
}

// A decision for a sandbox stays, and no pod goes from one tailnet to another.
func TestSandboxKeepsWhatItBeganWith(t *testing.T) {
	w := newWorld(t)
	_, tn := w.secondTailnet()
	w.boot(withProfile("prod", tn))
	_, pod := w.pod("a")
	w.mustAttach(pod)
	w.await(pod.UID, Running)
	w.Detach(context.Background(), pod.SandboxID)
	w.await(pod.UID, Stopped)

	changed := pod
	changed.Hostname, changed.Tags, changed.Features.Profile = "other", []string{"tag:other"}, "prod"
	w.mustAttach(changed)
	if s := w.await(pod.UID, Running); s.Hostname != pod.Hostname || s.Features.Profile != "" || !slices.Equal(s.Tags, pod.Tags) {
		t.Errorf("the same sandbox has become %+v", s)
	}
	if f, ok := w.FeaturesOf(pod.UID, pod.SandboxID); !ok || f.Profile != "" {
		t.Errorf("its features are %+v (%v)", f, ok)
	}
	changed.SandboxID += "-2"
	if f, ok := w.FeaturesOf(pod.UID, changed.SandboxID); ok {
		t.Errorf("a sandbox that is not attached has the features %+v", f)
	}
	if _, err := w.Attach(context.Background(), changed); err == nil || !strings.Contains(err.Error(), `profile "prod"`) || !strings.Contains(err.Error(), "delete the pod") {
		t.Errorf("its next sandbox, in another tailnet: %v", err)
	}
	changed.Features.Profile = ""
	w.mustAttach(changed)
	w.until("the new values", func() bool { return w.statusOf(pod.UID).Hostname == "other" }, func() string { return "" })
}

// A record that is damaged still tells in which tailnet the device is.
func TestRescueKeepsProfile(t *testing.T) {
	w := newWorld(t)
	srv, tn := w.secondTailnet()
	w.boot(withProfile("prod", tn))
	_, pod := w.pod("a")
	pod.Features.Profile = "prod"
	w.mustAttach(pod)
	w.await(pod.UID, Running)
	w.halt()
	path := filepath.Join(w.dir, pod.UID, podstate.RecordFile)
	data, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, data[:len(data)-10], 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.boot(withProfile("prod", tn))
	if s := w.statusOf(pod.UID); s.Features.Profile != "prod" {
		t.Errorf("the record that took its place says %+v", s)
	}
	elsewhere := pod
	elsewhere.Features.Profile = ""
	if _, err := w.Attach(context.Background(), elsewhere); err == nil || !strings.Contains(err.Error(), `profile "prod"`) {
		t.Errorf("with its keys into another tailnet: %v", err)
	}
	w.mustAttach(pod)
	w.await(pod.UID, Running)
	w.Forget(context.Background(), pod.SandboxID)
	w.until("the device is deleted", func() bool { return len(srv.Devices()) == 0 }, func() string { return w.statusOf(pod.UID).Reason })
}

// The configuration may have a profile lead to another tailnet, which knows another
// device by the same ID. That device is not deleted, neither by a node that has not
// been there nor by one that has.
func TestProfileLeadsElsewhere(t *testing.T) {
	w := newWorld(t)
	srv, tn := w.secondTailnet()
	w.boot(withProfile("prod", tn))
	_, other := w.pod("other")
	w.mustAttach(other)
	victim := w.await(other.UID, Running)
	_, pod := w.pod("a")
	pod.Features.Profile = "prod"
	w.mustAttach(pod)
	if s := w.await(pod.UID, Running); s.NodeID != victim.NodeID {
		t.Fatalf("the devices are %s and %s: this is to be a test of two that are alike", s.NodeID, victim.NodeID)
	}
	if r := w.nodeOfUID(pod.UID).record(); r.LoginServer != srv.ControlURL() {
		t.Errorf("its record says %q, want %s", r.LoginServer, srv.ControlURL())
	}
	w.Detach(context.Background(), pod.SandboxID)
	w.await(pod.UID, Stopped)
	w.halt()

	w.boot(withProfile("prod", w.tailnet))
	w.mustAttach(pod)
	w.until("a device there", func() bool {
		s := w.statusOf(pod.UID)
		return s.State == Running && s.NodeID != victim.NodeID
	}, func() string { return w.statusOf(pod.UID).Reason })
	if r := w.nodeOfUID(pod.UID).record(); len(r.Former) != 0 || r.LoginServer != w.control.ControlURL() {
		t.Errorf("its record has the devices %v of %s", r.Former, r.LoginServer)
	}
	w.Forget(context.Background(), pod.SandboxID)
	w.awaitForgotten(pod.UID)
	if d := w.control.Devices(); len(d) != 1 || d[0].ID != victim.NodeID {
		t.Errorf("devices: %+v, want %s alone", d, victim.NodeID)
	}
}

// As TestProfileLeadsElsewhere, for a pod that has ended before.
func TestProfileLeadsElsewhereAtTheEnd(t *testing.T) {
	for _, former := range []bool{false, true} {
		t.Run(fmt.Sprint("former=", former), func(t *testing.T) { profileLeadsElsewhere(t, former) })
	}
}

// profileLeadsElsewhere has a pod end whose device is of an earlier server, under the
// key that it has or one that was lost.
func profileLeadsElsewhere(t *testing.T, former bool) {
	w := newWorld(t)
	_, tn := w.secondTailnet()
	w.boot(withProfile("prod", tn))
	_, other := w.pod("other")
	w.mustAttach(other)
	victim := w.await(other.UID, Running)
	_, pod := w.pod("a")
	pod.Features.Profile = "prod"
	w.mustAttach(pod)
	if s := w.await(pod.UID, Running); s.NodeID != victim.NodeID {
		t.Fatalf("the devices are %s and %s: this is to be a test of two that are alike", s.NodeID, victim.NodeID)
	}
	w.halt()
	// Forgotten, and the process killed before the device was deleted.
	path := filepath.Join(w.dir, pod.UID, podstate.RecordFile)
	r, err := podstate.Load(filepath.Dir(path))
	if err == nil {
		r.Forgotten = !former
		if former {
			r.Former, r.NodeID = []tailcfg.StableNodeID{r.NodeID}, ""
		}
		_, err = podstate.Save(filepath.Dir(path), &r)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.boot(withProfile("prod", w.tailnet))
	if former {
		w.mustAttach(pod)
		w.await(pod.UID, Running)
		w.Forget(context.Background(), pod.SandboxID)
	}
	w.awaitForgotten(pod.UID)
	if d := w.control.Devices(); len(d) != 1 || d[0].ID != victim.NodeID {
		t.Errorf("devices: %+v, want %s alone", d, victim.NodeID)
	}
}

// Whether a tailnet has an API is asked once, and what that changes is a step. One whose
// profile is gone counts as having one: its nodes keep their devices, and are not logged
// out.
func TestTailnetAccess(t *testing.T) {
	static, err := tailnet.NewStatic(tailnet.StaticConfig{AuthKey: "k"})
	if err != nil {
		t.Fatal(err)
	}
	oauth, err := tailnet.NewOAuth(tailnet.OAuthConfig{ClientID: "id", ClientSecret: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	e := &Engine{cfg: Config{Tailnet: static, Profiles: map[string]tailnet.Tailnet{"prod": oauth}}, log: slog.New(slog.DiscardHandler)}
	e.openTailnets()
	if api := e.tailnets[""].api; api != nil {
		t.Errorf("with a static key there is %T", api)
	}
	if _, ok := e.tailnets["prod"].api.(steppedAPI); !ok {
		t.Errorf("with an OAuth client there is %T, whose changes are no steps", e.tailnets["prod"].api)
	}
	n := newNode(e, t.TempDir(), record{Pod: Pod{Features: Features{Profile: "gone"}}})
	if _, ok := n.tailnet().api.(absentTailnet); !ok {
		t.Errorf("of a profile that is gone there is %T", n.tailnet().api)
	}
}
