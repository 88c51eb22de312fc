// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale-nri/engine/tailnet"
	"tailscale-nri/k3d/lab/control"
)

// again makes a pod another one of the same name.
func again(p *Pod) { p.SandboxID, p.UID = p.SandboxID+"2", p.UID+"2" }

// soon has nodes ask for their names quickly.
func soon(cfg *Config) { cfg.namePause = time.Millisecond }

// awaitName waits until the pod's node runs under a name.
func (w *world) awaitName(uid, want string) NodeStatus {
	w.t.Helper()
	var last NodeStatus
	w.until(uid+" is called "+want, func() bool {
		last = w.await(uid, Running)
		return last.DNSName == want+".lab.ts.net"
	}, func() string { return last.DNSName })
	return last
}

// asked waits until the API was asked a few more times, as by a node that wants its name.
func (w *world) asked() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := w.control.AwaitCalls(ctx, w.control.Counters().Calls+5); err != nil {
		w.t.Fatalf("nobody asks for a name: %v", err)
	}
}

// A pod of a host that died comes up on another host. The earlier device keeps the name
// for as long as its host may only be restarting.
func TestNameOfADeadPod(t *testing.T) {
	w := newWorld(t)
	w.enter("k8s")
	w.boot()
	earlier := w.join("web")
	w.enter("k8s")
	w.boot(soon)
	later := w.join("web", again)
	if later.DNSName != "k8s-default-web-1.lab.ts.net" {
		t.Fatalf("the second pod is called %s at first", later.DNSName)
	}
	w.asked()
	if got := w.names(); got != "k8s-default-web k8s-default-web-1" {
		t.Errorf("devices %q while the first has just been seen", got)
	}
	w.control.AddFault(control.Fault{Path: "/api/v2/device/" + later.NodeID, Status: http.StatusBadRequest, Message: "Name is already taken", Times: 1})
	w.age(earlier.NodeID, nameUnseen)
	now := w.awaitName(later.UID, "k8s-default-web")
	if now.NodeID != later.NodeID || !slices.Equal(now.Addresses, later.Addresses) {
		t.Errorf("renamed to %+v, was %+v", now, later)
	}
	if got := w.names(); got != "k8s-default-web" {
		t.Errorf("devices %q in the end", got)
	}
}

// A name is not taken from a device that is not the pod's earlier one, however long that
// has not been seen. Once the name is free, the node gets it.
func TestNameOfAnother(t *testing.T) {
	chosen := func(p *Pod) { p.Hostname, p.ChosenName = "db", true }
	for _, test := range []struct {
		name          string
		cluster       string
		holder, wants func(*Pod)
	}{
		{"another cluster's", "other", again, again},
		{"a chosen one", "k8s", chosen, chosen},
		{"ours, chosen by nobody, requested by choice", "k8s", func(*Pod) {}, func(p *Pod) { p.ChosenName = true }},
		{"a chosen one that looks like a default one", "k8s", func(p *Pod) { p.ChosenName = true }, func(*Pod) {}},
		{"another pod's, given by an admin", "k8s", func(p *Pod) { p.Hostname = "k8s-default-other" }, func(*Pod) {}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.enter(test.cluster)
			w.boot()
			holder := w.join("web", test.holder)
			w.enter("k8s")
			w.age(holder.NodeID, 30*24*time.Hour)
			if holder.Hostname == "k8s-default-other" {
				if err := w.devices().Rename(t.Context(), holder.NodeID, "k8s-default-web"); err != nil {
					t.Fatal(err)
				}
			}
			w.boot(soon)
			n := w.join("web", test.wants)
			if n.DNSName != n.Hostname+"-1.lab.ts.net" {
				t.Fatalf("called %s at first", n.DNSName)
			}
			w.asked()
			if got, want := w.names(), n.Hostname+" "+n.Hostname+"-1"; got != want {
				t.Errorf("devices %q, want %q", got, want)
			}
			if err := w.control.Delete(holder.NodeID); err != nil {
				t.Fatal(err)
			}
			w.awaitName(n.UID, n.Hostname)
		})
	}
}

// If sweeping is off, a pod does not delete the earlier device of its name either.
func TestNameWithoutSweep(t *testing.T) {
	w := newWorld(t)
	w.enter("k8s")
	w.boot()
	earlier := w.join("web")
	w.enter("k8s")
	w.age(earlier.NodeID, time.Hour)
	w.boot(soon, func(c *Config) { c.SweepAfter = -1 })
	w.join("web", again)
	w.asked()
	if got := w.names(); got != "k8s-default-web k8s-default-web-1" {
		t.Errorf("devices %q", got)
	}
}

// A node asks nameTries times for a name that is not available, and then logs one line.
func TestNameIsGivenUp(t *testing.T) {
	w := newWorld(t)
	w.enter("other")
	w.boot()
	w.join("web")
	w.enter("k8s")
	log := &logged{t: t}
	w.boot(soon, log.log)
	n := w.join("web", again)
	w.until("the name is given up", func() bool { return log.count("is not available") > 0 }, func() string { return "still asking" })
	if n, m := log.count("is not available"), log.count("another name"); n != 1 || m != 1 {
		t.Errorf("%d lines at the end and %d at the beginning, want one each", n, m)
	}
	if got := w.await(n.UID, Running); got.DNSName != "k8s-default-web-1.lab.ts.net" || got.Hostname != "k8s-default-web" {
		t.Errorf("status: name %q, asked for %q", got.DNSName, got.Hostname)
	}
}

// A name that an admin gives to a pod's device stays.
func TestNameOfAnAdmin(t *testing.T) {
	w := newWorld(t)
	w.enter("k8s")
	w.boot(soon)
	n := w.join("web")
	if err := w.devices().Rename(t.Context(), n.NodeID, "k8s-default-web-old"); err != nil {
		t.Fatal(err)
	}
	w.awaitName(n.UID, "k8s-default-web-old")
	calls := w.control.Counters().Calls
	w.find(n.SandboxID).keepName(t.Context(), "k8s-default-web-old", "k8s-default-web")
	if now := w.control.Counters().Calls; now != calls {
		t.Errorf("the API was asked %d times", now-calls)
	}
}

// With a static key the name cannot be changed, and the log says so.
func TestNameWithStaticKey(t *testing.T) {
	w := newWorld(t)
	access, err := tailnet.NewStatic(tailnet.StaticConfig{AuthKey: w.control.NewReusableKey("tag:k8s-pod"), ControlURL: w.control.ControlURL()})
	if err != nil {
		t.Fatal(err)
	}
	w.tailnet = access
	log := &logged{t: t}
	w.boot(log.log)
	w.join("web")
	n := w.join("web", again)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	w.find(n.SandboxID).keepName(ctx, "k8s-default-web-1", "k8s-default-web")
	if ctx.Err() != nil {
		t.Error("a node asks for its name though a static key has no API")
	}
	if warnings := log.count("level=WARN"); warnings != 1 || log.count("another name") != 1 {
		t.Errorf("%d warnings, want the one on the name", warnings)
	}
	if names := fmt.Sprint(w.names()); !strings.Contains(names, "web-1") {
		t.Errorf("devices %q", names)
	}
}
