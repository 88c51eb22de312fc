// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"tailscale-nri/k3d/lab/control"
)

// hurried has the engine look at its nodes, and ask for them, all the time.
func hurried(cfg *Config) {
	cfg.conditionEvery, cfg.recheckEvery = 20*time.Millisecond, 200*time.Millisecond
	cfg.degradedAfter, cfg.cutOffAfter = 100*time.Millisecond, 500*time.Millisecond
}

// awaitReason waits until the node is in the state for a reason with the text.
func (w *world) awaitReason(uid string, want State, text string) {
	w.t.Helper()
	w.until(uid+" is "+string(want)+": "+text, func() bool {
		s := w.statusOf(uid)
		return s.State == want && strings.Contains(s.Reason, text) && (text != "" || s.Reason == "")
	}, func() string { return string(w.statusOf(uid).State) + " " + w.statusOf(uid).Reason })
}

// When the control plane deletes a device and does not tell its node, the node is not
// Running for long: with an API that is asked, and with a static key.
func TestDeletedSilently(t *testing.T) {
	for _, how := range []string{"API", "static key"} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t)
			if how == "static key" {
				w.static(w.control.NewReusableKey())
			}
			w.boot(hurried)
			other, before := w.join("other", untaggedIf(how == "static key")), w.join("a", untaggedIf(how == "static key"))
			if err := w.control.DeleteSilently(before.NodeID); err != nil {
				t.Fatal(err)
			}
			w.until("the node is another device", func() bool {
				s := w.statusOf(before.UID)
				return s.State == Running && s.NodeID != before.NodeID
			}, func() string { return w.statusOf(before.UID).Reason })
			if s := w.statusOf(other.UID); s.NodeID != other.NodeID {
				t.Errorf("the other node is %s, was %s", s.NodeID, other.NodeID)
			}
		})
	}
}

func untaggedIf(yes bool) func(*Pod) {
	if yes {
		return untagged
	}
	return func(*Pod) {}
}

// When a control connection is opened again, no peer notices.
func TestControlConnectionIsCut(t *testing.T) {
	w := newWorld(t)
	w.boot(hurried)
	a, podA := w.pod("a")
	b, podB := w.pod("b")
	w.mustAttach(podA)
	w.mustAttach(podB)
	before, nodeB := w.await(podA.UID, Running), w.await(podB.UID, Running)
	conn := dialEcho(t, a, b, nodeB.Addresses[0])
	for range 5 {
		w.find(podA.SandboxID).runningSession().b.control.cut()
		if err := exchange(conn, "still"); err != nil {
			t.Fatal(err)
		}
	}
	w.awaitReason(podA.UID, Running, "")
	if after := w.statusOf(podA.UID); after.NodeID != before.NodeID || !after.Since.Equal(before.Since) {
		t.Errorf("the node is %s since %v, was %s since %v", after.NodeID, after.Since, before.NodeID, before.Since)
	}
}

// A node that tailnet lock locks out is not Running, and its reason says what to
// sign. It is Running when that is done.
func TestLockedOut(t *testing.T) {
	w := newWorld(t)
	log := &logged{t: t}
	w.boot(hurried, log.log)
	signed, n := w.join("signed"), w.join("a")
	if err := w.control.Lock(signed.NodeID); err != nil {
		t.Fatal(err)
	}
	var key string
	for _, d := range w.control.Devices() {
		if d.ID == n.NodeID {
			key = d.NodeKey.String()
		}
	}
	w.awaitReason(n.UID, Pending, "tailscale lock sign "+key)
	w.awaitReason(signed.UID, Running, "")
	said := log.count("msg=running ")
	if err := w.control.Sign(n.NodeID); err != nil {
		t.Fatal(err)
	}
	w.awaitReason(n.UID, Running, "")
	if after := w.statusOf(n.UID); after.NodeID != n.NodeID {
		t.Errorf("the node is %s, was %s", after.NodeID, n.NodeID)
	}
	w.until("the log says that it runs again", func() bool { return log.count("msg=running ") == said+1 }, func() string { return "" })
	if c := log.count("not running any more"); c != 1 {
		t.Errorf("%d lines on what is wrong, want one", c)
	}
}

// An outage of the control plane alone is reported, and ends nothing.
func TestControlPlaneAwayIsSaid(t *testing.T) {
	for _, o := range []control.Outage{control.Refusing} {
		w := newWorld(t)
		log := &logged{t: t}
		w.boot(hurried, log.log)
		n := w.join("a")
		for range 2 {
			if err := w.control.SetOutage(o); err != nil {
				t.Fatal(err)
			}
			w.awaitReason(n.UID, Running, "the control plane has not been reached since")
			if err := w.control.SetOutage(control.Up); err != nil {
				t.Fatal(err)
			}
			w.awaitReason(n.UID, Running, "")
		}
		if after := w.statusOf(n.UID); after.NodeID != n.NodeID || !after.Since.Equal(n.Since) {
			t.Errorf("the node is %s since %v, was %s since %v", after.NodeID, after.Since, n.NodeID, n.Since)
		}
		if a, b := log.count("running, but impaired"), log.count("no longer impaired"); a != 1 || b != 1 {
			t.Errorf("%d and %d lines for an outage that comes and goes, want one each", a, b)
		}
	}
}

// A node that the control plane refuses is not Running, and its reason is the control
// plane's own. An answer that asks for patience is an outage.
func TestControlPlaneRefuses(t *testing.T) {
	w := newWorld(t)
	w.boot(hurried)
	n := w.join("a")
	for _, test := range []struct {
		status int
		want   State
		says   string
	}{
		{http.StatusForbidden, Pending, "the control plane refuses the node: HTTP 403: this tailnet is closed"},
		{http.StatusTooManyRequests, Running, "the control plane has not been reached since"},
		{http.StatusServiceUnavailable, Running, "the control plane has not been reached since"},
	} {
		w.control.RefuseNodes(test.status, "this tailnet is closed")
		w.find(n.SandboxID).runningSession().b.control.cut()
		w.awaitReason(n.UID, test.want, test.says)
		w.control.RefuseNodes(0, "")
		w.awaitReason(n.UID, Running, "")
	}
	if after := w.statusOf(n.UID); after.NodeID != n.NodeID {
		t.Errorf("the node is %s, was %s", after.NodeID, n.NodeID)
	}
}

// A node that reaches neither DERP nor a peer is not Running. A node that has a peer is
// Running, and says what it lacks.
func TestCutOff(t *testing.T) {
	w := newWorld(t)
	w.boot(hurried, func(cfg *Config) { cfg.NoLocalDelivery = true })
	a, podA := w.pod("a")
	b, podB := w.pod("b")
	_, podC := w.pod("alone")
	for _, pod := range []Pod{podA, podB, podC} {
		w.mustAttach(pod)
	}
	w.await(podA.UID, Running)
	nodeB := w.await(podB.UID, Running)
	w.await(podC.UID, Running)
	conn := dialEcho(t, a, b, nodeB.Addresses[0])
	w.control.Close()
	w.awaitReason(podC.UID, Pending, "no DERP server has been reached since")
	w.awaitReason(podA.UID, Running, "the control plane has not been reached since")
	if err := exchange(conn, "still"); err != nil {
		t.Fatal(err)
	}
	if s := w.statusOf(podC.UID); len(s.Addresses) != 2 {
		t.Errorf("the pod that is cut off has %v", s.Addresses)
	}
}

// Whatever comes and goes within ten minutes, the log's last line is not about a fault
// that is over.
func TestConditionLinesEnd(t *testing.T) {
	log := &logged{t: t}
	cfg := Config{}
	log.log(&cfg)
	n := &published{queue: newNewsQueue(nil)}
	n.logger.Store(cfg.Logger)
	n.status.State = Running
	for _, kind := range []string{"no-DERP", "", "no-control", "", "no-DERP", "", "identity", "no-control", ""} {
		n.setCondition(condition{kind: kind, text: kind})
	}
	if begun, over := log.count("running, but impaired"), log.count("no longer impaired"); begun != 3 || over != 3 {
		t.Errorf("%d lines on what is wrong, %d on its end, want 3 each", begun, over)
	}
}

// What is to be known of all nodes is said of one that runs, is not logged for each, and
// comes back after a fault.
func TestRemark(t *testing.T) {
	const remark = "name their range in TS_CLUSTER_RANGES"
	w := newWorld(t)
	log := &logged{t: t}
	w.boot(hurried, log.log, func(cfg *Config) { cfg.Remark = remark })
	n := w.join("a")
	w.awaitReason(n.UID, Running, remark)
	if err := w.control.SetOutage(control.Refusing); err != nil {
		t.Fatal(err)
	}
	w.awaitReason(n.UID, Running, "the control plane has not been reached")
	if err := w.control.SetOutage(control.Up); err != nil {
		t.Fatal(err)
	}
	w.awaitReason(n.UID, Running, remark)
	if c := log.count(remark); c != 0 {
		t.Errorf("%d lines of the log have it, want none", c)
	}
}
