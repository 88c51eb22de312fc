// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"tailscale-nri/engine/internal/nstest"
	"tailscale-nri/engine/measure"
)

// detailed returns the details of the pod's node.
func (w *world) detailed(uid string) (found Detail) {
	w.t.Helper()
	for _, d := range w.Details() {
		if d.UID == uid {
			return d
		}
	}
	w.t.Fatalf("%s is not listed", uid)
	return found
}

// untilDetailed calls the address from the pod until its node is as it should be.
func (w *world) untilDetailed(uid string, from *nstest.Pod, to netip.Addr, what string, ok func(Detail) bool) (d Detail) {
	w.t.Helper()
	w.until(uid+": "+what, func() bool {
		if _, err := callerSeen(from, to); err != nil {
			w.t.Fatal(err)
		}
		d = w.detailed(uid)
		return ok(d)
	}, func() string { return fmt.Sprintf("%+v", d) })
	return d
}

// dropUDP drops all UDP to a machine from elsewhere.
func dropUDP(t *testing.T, p *nstest.Pod) {
	t.Helper()
	ns, err := netns.GetFromPath(p.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		t.Fatal(err)
	}
	table := conn.AddTable(&nftables.Table{Name: "test", Family: nftables.TableFamilyINet})
	chain := conn.AddChain(&nftables.Chain{
		Name: "in", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
}

// A node's path, handshake and bytes are those of its packets: straight to a stock
// peer, to another one over DERP alone, to a pod of the same host, or nowhere. The last
// packet decides.
func TestDetails(t *testing.T) {
	w := newWorld(t)
	w.boot()
	peers := map[string]netip.Addr{}
	for _, name := range []string{"open", "closed"} {
		s := w.startStock(name)
		if name == "closed" {
			dropUDP(t, s.Pod)
		}
		serveEcho(t, s.Pod)
		peers[name] = s.up().Addresses[0]
	}
	pods := map[string]*nstest.Pod{}
	for _, name := range []string{"direct", "derp", "local", "near", "idle"} {
		p, pod := w.pod(name)
		pods[name] = p
		w.mustAttach(pod)
	}
	for name := range pods {
		w.await("uid-"+name, Running)
	}
	near := w.statusOf("uid-near").Addresses[0]
	serveEcho(t, pods["near"])
	began := time.Now()

	d := w.untilDetailed("uid-direct", pods["direct"], peers["open"], "straight to the peer", func(d Detail) bool { return d.Active && d.Path == measure.Direct })
	expectSession(t, d, "open", began)
	if s := d.Sessions[0]; !strings.HasPrefix(s.Endpoint, "172.30.") || s.DERP != "" || d.PathDERP != "" || s.Address != peers["open"] {
		t.Errorf("direct: %+v", d)
	}
	if d.LoginServer != w.control.ControlURL() || !d.Measured.Control || d.Measured.Peers < 6 {
		t.Errorf("direct: registered with %q, %+v", d.LoginServer, d.Measured)
	}
	if traffic := d.Measured.Traffic[measure.Direct]; traffic[measure.In].Bytes == 0 || traffic[measure.Out].Bytes == 0 {
		t.Errorf("direct: %+v", d.Measured.Traffic)
	}

	d = w.untilDetailed("uid-derp", pods["derp"], peers["closed"], "over DERP", func(d Detail) bool { return d.Active })
	expectSession(t, d, "closed", began)
	if s := d.Sessions[0]; d.Path != measure.DERP || d.PathDERP == "" || s.DERP != d.PathDERP || s.Endpoint != "" {
		t.Errorf("derp: %+v", d)
	}
	if traffic := d.Measured.Traffic; traffic[measure.DERP][measure.In].Bytes == 0 || traffic[measure.Direct][measure.In].Bytes != 0 {
		t.Errorf("derp: %+v", traffic)
	}

	isLocal := func(d Detail) bool { return d.Active && d.Path == measure.Local }
	for _, name := range []string{"local", "near"} {
		d = w.untilDetailed("uid-"+name, pods["local"], near, "on this host", isLocal)
		if traffic := d.Measured.Traffic[measure.Local]; len(d.Sessions) != 0 || !d.Measured.Newest.IsZero() || traffic[measure.In].Bytes == 0 || traffic[measure.Out].Bytes == 0 {
			t.Errorf("%s: %+v", name, d)
		}
	}
	if d = w.detailed("uid-idle"); d.Active || d.Path != 0 || len(d.Sessions) != 0 || !d.Measured.Newest.IsZero() || d.State != Running {
		t.Errorf("idle: %+v", d)
	}
	for path, traffic := range w.detailed("uid-idle").Measured.Traffic {
		if traffic[measure.Out].Bytes != 0 {
			t.Errorf("idle: %v of %v", traffic, measure.Path(path))
		}
	}

	w.untilDetailed("uid-local", pods["local"], peers["open"], "to the peer by now", func(d Detail) bool { return d.Active && d.Path != measure.Local })
	w.untilDetailed("uid-local", pods["local"], near, "on this host again", isLocal)
}

// expectSession: the node has one session, with the peer, of just now.
func expectSession(t *testing.T, d Detail, peer string, began time.Time) {
	t.Helper()
	if len(d.Sessions) != 1 || d.Measured.Sessions != 1 {
		t.Fatalf("%s: %d sessions, %+v", d.Pod, d.Measured.Sessions, d.Sessions)
	}
	s := d.Sessions[0]
	if !s.Active || !strings.HasPrefix(s.Name, peer+".") || s.BytesIn < 100 || s.BytesOut < 100 ||
		s.LastHandshake.Before(began) || s.LastHandshake.After(time.Now()) || s.LastWrite.Before(began.Add(-time.Second)) {
		t.Errorf("%s: began %v, %+v", d.Pod, began, s)
	}
	if !d.Measured.Newest.Equal(s.LastHandshake) {
		t.Errorf("%s: the last handshake was %v, or %v", d.Pod, d.Measured.Newest, s.LastHandshake)
	}
}

// Pods that have no node yet are listed, and nodes that no process serves.
func TestDetailsOfNone(t *testing.T) {
	w := newWorld(t)
	w.boot()
	n := w.join("a")
	w.late.refused["uid-r"] = NodeStatus{UID: "uid-r", Namespace: "default", Pod: "r", State: Pending, Reason: "bad"}
	if err := w.Detach(context.Background(), n.SandboxID); err != nil {
		t.Fatal(err)
	}
	w.await(n.UID, Stopped)
	all := w.Details()
	if len(all) != 2 || all[0].State != Stopped || all[0].Active || all[0].LoginServer == "" || all[1].Reason != "bad" {
		t.Errorf("got %+v", all)
	}
}

// TestDetailsOfMany has all that is known of many nodes that see each other, most of
// them with a session, and logs what it takes. k3d/lab/bench does so for 200.
func TestDetailsOfMany(t *testing.T) {
	const pods, silent = 24, 4 // one in so many calls nobody
	w := newWorld(t)
	w.boot()
	s := w.startStock("laptop")
	serveEcho(t, s.Pod)
	laptop := s.up().Addresses[0]
	var callers []*nstest.Pod
	for i := range pods {
		p, pod := w.pod(fmt.Sprintf("pod%02d", i))
		w.mustAttach(pod)
		w.await(pod.UID, Running)
		callers = append(callers, p)
	}
	// A netmap that comes late may make a peer anew, which then counts as one to which
	// nothing was sent: such a pod calls again.
	w.until("those that call are active, and only those", func() bool {
		all := w.Details()
		right := len(all) == pods
		for i, d := range all {
			if calls := i%silent != 0; d.Active != calls {
				right = false
				if calls {
					_, _ = callerSeen(callers[i], laptop)
				}
			}
		}
		return right
	}, func() string { return fmt.Sprintf("%+v", w.Details()) })
	var took []time.Duration
	for range 50 {
		start := time.Now()
		all := w.Details()
		took = append(took, time.Since(start))
		for i, d := range all {
			if len(all) != pods || d.Pod != fmt.Sprintf("pod%02d", i) || len(d.Sessions) != d.Measured.Sessions {
				t.Fatalf("%d nodes; number %d is %+v", len(all), i, d)
			}
		}
	}
	slices.Sort(took)
	t.Logf("%d nodes: %v at best, %v in the middle", pods, took[0], took[len(took)/2])
}

// A backend that hangs does not hide the others, is read by one goroutine however often
// it is asked for, and is known again once it answers.
func TestDetailsWhileOneHangs(t *testing.T) {
	w := newWorld(t)
	w.boot()
	held, other := w.join("a"), w.join("b")
	for _, uid := range []string{held.UID, other.UID} {
		w.until(uid+": a peer", func() bool { return w.detailed(uid).Measured.Peers == 1 }, func() string { return fmt.Sprintf("%+v", w.detailed(uid)) })
	}
	b := w.nodeOfUID(held.UID).runningSession().b
	b.engine.sessions.mu.Lock()
	var under *view
	for range 2 {
		start := time.Now()
		all := w.Details()
		if took := time.Since(start); took < viewPatience || took > viewPatience+10*time.Second {
			t.Errorf("it took %v", took)
		}
		if len(all) != 2 || !all[0].Unanswered || all[0].State != Running || !all[0].Measured.Control || all[1].Unanswered || all[1].Measured.Peers != 1 {
			t.Errorf("got %+v", all)
		}
		if now := b.viewed.Load(); now == nil || under != nil && now != under {
			t.Errorf("%p is under way, and %p before", now, under)
		} else {
			under = now
		}
	}
	b.engine.sessions.mu.Unlock()
	<-under.done
	if d := w.detailed(held.UID); d.Unanswered || d.Measured.Peers != 1 || b.viewed.Load() != nil {
		t.Errorf("got %+v", d)
	}
}
