// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"slices"
	"testing"
	"time"

	"tailscale.com/ipn"
	"tailscale.com/tailcfg"

	"tailscale-nri/engine/internal/podstate"
	"tailscale-nri/engine/measure"
)

// peerStates are notifications of peers' sessions.
func peerStates(state ipn.PeerWireGuardState, peers ...tailcfg.StableNodeID) map[tailcfg.StableNodeID]ipn.PeerState {
	all := map[tailcfg.StableNodeID]ipn.PeerState{}
	for _, id := range peers {
		all[id] = ipn.PeerState{PeerWireGuardState: state}
	}
	return all
}

// recentOnDisk are the peers that the next process would begin with.
func recentOnDisk(t *testing.T, n *node) []tailcfg.StableNodeID {
	t.Helper()
	r, err := podstate.Load(n.dir)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Sorted(slices.Values(r.Recent))
}

// The record is written when a session with another peer begins, and not each time that
// sessions end and begin again. At an end in order it has those that are open.
func TestRecordOfAFlappingPeer(t *testing.T) {
	w := newWorld(t)
	w.boot()
	pod := w.join("a")
	n := w.find(pod.SandboxID)
	s := n.runningSession()
	hear := func(state ipn.PeerWireGuardState, peers ...tailcfg.StableNodeID) {
		s.notify <- &ipn.Notify{PeerState: peerStates(state, peers...)}
	}
	untilRecorded := func(want ...tailcfg.StableNodeID) {
		t.Helper()
		w.until("the peers are in the record", func() bool { return slices.Equal(recentOnDisk(t, n), want) }, func() string { return "" })
	}
	hear(ipn.PeerWireGuardStateEstablished, "n1", "n2")
	untilRecorded("n1", "n2")
	before := n.written.all()[measure.RecordFile]
	for range 50 {
		hear(ipn.PeerWireGuardStateNone, "n1", "n2")
		hear(ipn.PeerWireGuardStateEstablished, "n1", "n2")
	}
	hear(ipn.PeerWireGuardStateNone, "n1")
	hear(ipn.PeerWireGuardStateEstablished, "n3")
	untilRecorded("n1", "n2", "n3")
	if bytes := n.written.all()[measure.RecordFile] - before; bytes > 4<<10 {
		t.Errorf("%d bytes were written, want one record", bytes)
	}
	w.halt()
	if got, want := recentOnDisk(t, n), []tailcfg.StableNodeID{"n2", "n3"}; !slices.Equal(got, want) {
		t.Errorf("after an end in order the disk holds %v, want %v", got, want)
	}
}

// Peers whose sessions have ended are removed in the end, but not those whose sessions
// began again.
func TestEndedSessionsArePruned(t *testing.T) {
	w := newWorld(t)
	w.boot()
	pod := w.join("a")
	n := w.find(pod.SandboxID)
	s := &session{n: n, recent: newRecentPeers()}
	s.remember(peerStates(ipn.PeerWireGuardStateEstablished, "n1", "n2", "n3"))
	if s.recent.due != nil {
		t.Error("there is something to remove before a session has ended")
	}
	s.recent.next = time.Now()
	s.remember(peerStates(ipn.PeerWireGuardStateNone, "n1", "n2", "n4"))
	s.remember(peerStates(ipn.PeerWireGuardStateEstablished, "n2"))
	if got := recentOnDisk(t, n); len(got) != 3 {
		t.Errorf("the record has %v before it is time", got)
	}
	select {
	case <-s.recent.due:
		s.pruneRecent()
	case <-time.After(20 * time.Second):
		t.Fatal("they are never removed")
	}
	if got, want := recentOnDisk(t, n), []tailcfg.StableNodeID{"n2", "n3"}; !slices.Equal(got, want) {
		t.Errorf("the record has %v, want %v", got, want)
	}
	s.remember(peerStates(ipn.PeerWireGuardStateNone, "n2"))
	select {
	case <-s.recent.due:
		t.Error("the record is written again at once")
	case <-time.After(100 * time.Millisecond):
	}
}
