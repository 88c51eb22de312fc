// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tailscale.com/types/key"

	"tailscale-nri/engine/internal/nstest"
	"tailscale-nri/engine/internal/podstate"
)

// hosts are two hosts of a cluster: one control plane, one store.
type hosts struct {
	*world        // the first
	second *world // the other, which shares its control plane
	store  *memoryIdentities
}

func newHosts(t *testing.T) *hosts {
	t.Helper()
	h := &hosts{world: newWorld(t), store: newIdentities()}
	h.enter("k8s")
	h.second = &world{t: t, control: h.control, tailnet: h.tailnet, dir: t.TempDir()}
	t.Cleanup(h.second.halt)
	h.boot(quickLease(h.store, "n1"))
	h.second.boot(quickLease(h.store, "n2"))
	return h
}

// ordinal returns a pod db-0. incarnation tells it from earlier and later pods of that
// name.
func (w *world) ordinal(incarnation string) (*nstest.Pod, Pod) {
	p, pod := w.pod(incarnation)
	pod.Name, pod.Hostname = "db-0", "k8s-default-db-0"
	pod.Features.Workload = true
	return p, pod
}

// end has the pod's sandbox stopped and removed.
func (w *world) end(pod Pod) {
	w.t.Helper()
	ctx := context.Background()
	w.Detach(ctx, pod.SandboxID)
	w.Forget(ctx, pod.SandboxID)
}

// sameDevice checks that the node is the same device as elsewhere.
func sameDevice(t *testing.T, before, after NodeStatus) {
	t.Helper()
	if after.NodeID != before.NodeID || !slices.Equal(after.Addresses, before.Addresses) || after.DNSName != before.DNSName {
		t.Errorf("it is %s %v %s, was %s %v %s", after.NodeID, after.Addresses, after.DNSName, before.NodeID, before.Addresses, before.DNSName)
	}
}

func (w *world) nodeKey(uid string) key.NodePublic {
	w.t.Helper()
	k, err := podstate.StoredKeys(filepath.Join(w.dir, uid, podstate.StateFile))
	if err != nil || k.Node.IsZero() {
		w.t.Fatalf("%s has no node key (%v)", uid, err)
	}
	return k.Node
}

// A workload's pod that is created again on another host, and then on the first again,
// is the same device with another node key each time, and no keys stay behind.
func TestWorkloadMoves(t *testing.T) {
	h := newHosts(t)
	client, podClient := h.pod("client")
	h.mustAttach(podClient)
	nodeClient := h.await(podClient.UID, Running)
	var before NodeStatus
	keys := map[key.NodePublic]bool{}
	for i, w := range []*world{h.world, h.second, h.world, h.world} {
		p, pod := w.ordinal("db" + string(rune('a'+i)))
		serveEcho(t, p)
		start := time.Now()
		w.mustAttach(pod)
		node := w.await(pod.UID, Running)
		t.Logf("up in %v", time.Since(start))
		if i > 0 {
			sameDevice(t, before, node)
		}
		before = node
		keys[w.nodeKey(pod.UID)] = true
		h.until("the peer reaches it under its address", func() bool {
			seen, err := callerSeen(client, node.Addresses[0])
			return err == nil && seen == nodeClient.Addresses[0].String()
		}, func() string { return "" })
		w.end(pod)
		w.awaitForgotten(pod.UID)
		if d := h.control.Devices(); len(d) != 2 {
			t.Errorf("devices after the pod's end: %+v, want the client's and the workload's", d)
		}
	}
	if len(keys) != 4 {
		t.Errorf("%d node keys for four pods", len(keys))
	}
	if id := h.store.stored[WorkloadKey{"default", "db-0"}]; id.Holder != (Holder{}) || id.Generation != 4 || !id.Registered || string(id.NodeID) != before.NodeID {
		t.Errorf("in the store: holder %+v, generation %d, registered %v, device %s", id.Holder, id.Generation, id.Registered, id.NodeID)
	}
}

// A sandbox that is created again, and a restart of the process with the store away,
// keep the device; the restart without a request to the store.
func TestWorkloadRestart(t *testing.T) {
	h := newHosts(t)
	_, pod := h.ordinal("db")
	h.mustAttach(pod)
	before := h.await(pod.UID, Running)
	minted := h.control.Counters().KeysMinted
	nodeKey := h.nodeKey(pod.UID)
	h.halt()
	h.store.away.Store(true)
	h.boot(quickLease(h.store, "n1"), func(cfg *Config) { cfg.conditionEvery = 100 * time.Millisecond })
	sameDevice(t, before, h.await(pod.UID, Running))
	h.reasonSays(pod.UID, "another host may take this workload's device", errStoreAway.Error())
	if s := h.statusOf(pod.UID); s.State != Running || h.nodeKey(pod.UID) != nodeKey || h.control.Counters().KeysMinted != minted {
		t.Errorf("after a restart it is %s, with the same key: %v, and %d more auth keys", s.State, h.nodeKey(pod.UID) == nodeKey, h.control.Counters().KeysMinted-minted)
	}
	h.store.away.Store(false)
	h.until("the store has been told", func() bool { s := h.statusOf(pod.UID); return s.State == Running && s.Reason == "" },
		func() string { return h.statusOf(pod.UID).Reason })

	h.Detach(context.Background(), pod.SandboxID)
	_, again := h.ordinal("db2")
	again.UID = pod.UID
	h.mustAttach(again)
	h.until("the new sandbox is up", func() bool { s := h.statusOf(pod.UID); return s.State == Running && s.SandboxID == again.SandboxID },
		func() string { return h.statusOf(pod.UID).Reason })
	sameDevice(t, before, h.statusOf(pod.UID))
	if d := h.control.Devices(); len(d) != 1 {
		t.Errorf("devices: %+v", d)
	}
}

// While a pod is up on one host, a pod of the same name on another host waits, and says
// for which host. While the store is away it waits, too.
func TestWorkloadWaits(t *testing.T) {
	h := newHosts(t)
	_, first := h.ordinal("first")
	h.mustAttach(first)
	before := h.await(first.UID, Running)
	_, second := h.second.ordinal("second")
	h.second.mustAttach(second)
	h.second.reasonSays(second.UID, "waits for host n1, which has this identity until")
	waits := h.second.find(second.SandboxID)
	logged := func() string {
		waits.mu.Lock()
		defer waits.mu.Unlock()
		return waits.told.reason
	}
	h.until("the log has it", func() bool { return logged() != "" }, func() string { return "" })
	was := logged()
	time.Sleep(2 * 3 * time.Second) // two leases
	if is := logged(); is != was {
		t.Errorf("the log has one wait twice: %q, %q", was, is)
	}
	if s := h.second.statusOf(second.UID); s.State != Pending {
		t.Fatalf("the second is %s", s.State)
	}
	if s := h.statusOf(first.UID); s.State != Running {
		t.Fatalf("the first is %s: %s", s.State, s.Reason)
	}
	h.store.away.Store(true)
	h.second.reasonSays(second.UID, "reading the stored identity of the workload", errStoreAway.Error())
	h.store.away.Store(false)
	h.end(first)
	sameDevice(t, before, h.second.await(second.UID, Running))
}

// A pod waits one lease for a holder whose host is gone.
func TestWorkloadLeaseRunsOut(t *testing.T) {
	h := newHosts(t)
	_, first := h.ordinal("first")
	h.mustAttach(first)
	before := h.await(first.UID, Running)
	h.halt() // it gives nothing back
	_, second := h.second.ordinal("second")
	start := time.Now()
	h.second.mustAttach(second)
	h.second.reasonSays(second.UID, "waits for host n1")
	sameDevice(t, before, h.second.await(second.UID, Running))
	if took := time.Since(start); took < 3*time.Second {
		t.Errorf("taken after %v, before the lease was over", took)
	}

	// The first comes back with its pod: it waits for what it had.
	h.boot(quickLease(h.store, "n1"))
	h.until("the first has seen that", func() bool { return strings.Contains(h.statusOf(first.UID).Reason, "waits for host n2") },
		func() string { s := h.statusOf(first.UID); return string(s.State) + " " + s.Reason })
	if s := h.second.statusOf(second.UID); s.State != Running {
		t.Errorf("the second is %s: %s", s.State, s.Reason)
	}
	// And ends without having deleted anything.
	h.end(first)
	h.awaitForgotten(first.UID)
	if d := h.control.Devices(); len(d) != 1 || d[0].ID != before.NodeID {
		t.Errorf("devices: %+v", d)
	}
	h.second.await(second.UID, Running)
}

// A record from before a reboot, or in a copy of the state directory, does not take the
// identity: its pod is gone.
func TestWorkloadOfAnEarlierBoot(t *testing.T) {
	h := newHosts(t)
	p, pod := h.ordinal("db")
	h.mustAttach(pod)
	h.await(pod.UID, Running)
	h.halt()
	p.End()
	h.boot(quickLease(h.store, "n1"), rebooted)
	h.reasonSays(pod.UID, "network namespace is gone")
	if id, err := h.store.Load(t.Context(), keyOf(pod)); err != nil || id.Generation != 1 || id.Holder.PodUID != pod.UID {
		t.Errorf("the identity is of generation %d and %+v (%v)", id.Generation, id.Holder, err)
	}
}

// A device that was deleted by hand is created again, by the holder, and no other host
// takes it for a different device.
func TestWorkloadDeviceDeleted(t *testing.T) {
	h := newHosts(t)
	_, pod := h.ordinal("db")
	h.mustAttach(pod)
	before := h.await(pod.UID, Running)
	if err := h.devices().Delete(t.Context(), before.NodeID); err != nil {
		t.Fatal(err)
	}
	h.until("it is another device", func() bool {
		s := h.statusOf(pod.UID)
		return s.State == Running && s.NodeID != before.NodeID
	}, func() string { return h.statusOf(pod.UID).Reason })
	after := h.statusOf(pod.UID)
	h.until("the store has it", func() bool {
		id, err := h.store.Load(t.Context(), keyOf(pod))
		return err == nil && string(id.NodeID) == after.NodeID && id.Registered
	}, func() string { return "" })
	h.end(pod)
	h.awaitForgotten(pod.UID)
	_, next := h.second.ordinal("next")
	h.second.mustAttach(next)
	sameDevice(t, after, h.second.await(next.UID, Running))
}

// An identity that was deleted while it is held is stored again. One that was not used
// for long is deleted with its device, and before that no sweep touches the device.
func TestWorkloadSweep(t *testing.T) {
	h := newHosts(t)
	_, pod := h.ordinal("db")
	h.mustAttach(pod)
	device := h.await(pod.UID, Running).NodeID
	key := keyOf(pod)
	id, err := h.store.Load(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.store.Delete(t.Context(), key, id.Version); err != nil {
		// A renewal was faster.
		id, _ = h.store.Load(t.Context(), key)
		if err := h.store.Delete(t.Context(), key, id.Version); err != nil {
			t.Fatal(err)
		}
	}
	h.until("it is stored again", func() bool { _, err := h.store.Load(t.Context(), key); return err == nil }, func() string { return "" })
	h.end(pod)
	h.awaitForgotten(pod.UID)

	h.age(device, 10*24*time.Hour)
	if err := h.second.sweepOnce(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if d := h.control.Devices(); len(d) != 1 {
		t.Fatalf("devices: %+v, want the workload's", d)
	}
	h.store.change(key, func(id *Identity) { id.LastUsed = time.Now().Add(-10 * 24 * time.Hour) })
	h.store.away.Store(true)
	if err := h.second.sweepOnce(t.Context(), ""); err == nil {
		t.Error("it sweeps without the list of identities")
	}
	h.store.away.Store(false)
	if err := h.second.sweepOnce(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if d := h.control.Devices(); len(d) != 0 {
		t.Errorf("devices: %+v, want none", d)
	}
	if len(h.store.stored) != 0 {
		t.Errorf("identities are left: %d", len(h.store.stored))
	}
}

// An identity that looks unused, as to a sweep whose clock is wrong, is left alone if
// its holder renews it.
func TestWorkloadSweptInUse(t *testing.T) {
	h := newHosts(t)
	_, pod := h.ordinal("db")
	h.mustAttach(pod)
	before := h.await(pod.UID, Running)
	key := keyOf(pod)
	id, err := h.store.Load(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	id.LastUsed = time.Now().Add(-10 * 24 * time.Hour)
	if err := h.second.sweepIdentities(t.Context(), h.second.tailnets[""].api, map[WorkloadKey]Identity{key: id}, kept{}, nil); err != nil {
		t.Fatal(err)
	}
	if id, err = h.store.Load(t.Context(), key); err != nil || id.Generation != 1 || id.Holder.Host != "n1" {
		t.Errorf("the identity is of generation %d and %+v (%v)", id.Generation, id.Holder, err)
	}
	sameDevice(t, before, h.await(pod.UID, Running))
}

// An identity that is overwritten with an earlier one of itself, as from a backup, is
// taken again by its holder, and is the same device.
func TestWorkloadRestored(t *testing.T) {
	h := newHosts(t)
	_, first := h.ordinal("first")
	h.mustAttach(first)
	before := h.await(first.UID, Running)
	key := keyOf(first)
	h.until("the store has the device", func() bool { id, err := h.store.Load(t.Context(), key); return err == nil && id.Registered },
		func() string { return "" })
	backup, err := h.store.Load(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	h.end(first)
	h.awaitForgotten(first.UID)
	_, second := h.second.ordinal("second")
	h.second.mustAttach(second)
	sameDevice(t, before, h.second.await(second.UID, Running))
	was := h.second.nodeKey(second.UID)

	h.store.change(key, func(id *Identity) { *id = backup }) // of generation 1, held by n1
	h.until("the second has it again, with another key", func() bool {
		id, err := h.store.Load(t.Context(), key)
		return err == nil && id.Holder.Host == "n2" && id.Registered && h.second.nodeKey(second.UID) != was &&
			h.second.statusOf(second.UID).State == Running
	}, func() string { return h.second.statusOf(second.UID).Reason })
	sameDevice(t, before, h.second.statusOf(second.UID))
	if d := h.control.Devices(); len(d) != 1 || d[0].NodeKey != h.second.nodeKey(second.UID) {
		t.Errorf("devices: %+v", d)
	}
}

// A record of a version without these fields names the workload's device as the pod's
// own. The device must not be deleted with the pod.
func TestWorkloadRecordOfAnotherVersion(t *testing.T) {
	for name, asks := range map[string]bool{"the annotation is in it": true, "nor is the annotation": false} {
		t.Run(name, func(t *testing.T) {
			h := newHosts(t)
			_, pod := h.ordinal("db")
			h.mustAttach(pod)
			before := h.await(pod.UID, Running)
			h.find(pod.SandboxID).update(func(r *record) { r.Generation, r.Rekeyed, r.Pod.Features.Workload = 0, false, asks })
			h.halt()
			h.boot(quickLease(h.store, "n1"))
			h.await(pod.UID, Running)
			h.end(pod)
			h.awaitForgotten(pod.UID)
			_, next := h.second.ordinal("next")
			h.second.mustAttach(next)
			sameDevice(t, before, h.second.await(next.UID, Running))
		})
	}
}

// Of two pods of one host, the one that holds the identity keeps it when the process
// restarts.
func TestWorkloadSameHost(t *testing.T) {
	h := newHosts(t)
	_, first := h.ordinal("first")
	h.mustAttach(first)
	before := h.await(first.UID, Running)
	_, second := h.ordinal("second")
	h.mustAttach(second)
	h.reasonSays(second.UID, "waits for pod "+first.UID)
	for range 3 {
		h.halt()
		h.boot(quickLease(h.store, "n1"))
		h.reasonSays(second.UID, "waits for pod "+first.UID)
		sameDevice(t, before, h.await(first.UID, Running))
	}
	if id, err := h.store.Load(t.Context(), keyOf(first)); err != nil || id.Generation != 1 {
		t.Errorf("generation %d (%v)", id.Generation, err)
	}
	h.end(first)
	sameDevice(t, before, h.await(second.UID, Running))
}

// lossyStore loses every third answer of Save.
type lossyStore struct {
	IdentityStore
	saves atomic.Int64
}

func (s *lossyStore) Save(ctx context.Context, key WorkloadKey, id Identity) (string, error) {
	version, err := s.IdentityStore.Save(ctx, key, id)
	if s.saves.Add(1)%3 == 1 {
		return "", errStoreAway
	}
	return version, err
}

// If the answer to a Save is lost, the host that stored the identity is its holder, and
// no other host is.
func TestWorkloadAnswersLost(t *testing.T) {
	h := newHosts(t)
	h.halt()
	h.second.halt()
	lossy := &lossyStore{IdentityStore: h.store}
	h.boot(quickLease(lossy, "n1"))
	h.second.boot(quickLease(lossy, "n2"))
	_, first := h.ordinal("first")
	h.mustAttach(first)
	before := h.await(first.UID, Running)
	_, second := h.second.ordinal("second")
	h.second.mustAttach(second)
	for range 2 * 30 { // two leases
		if s := h.second.statusOf(second.UID); s.State == Running {
			t.Fatal("both run")
		}
		time.Sleep(100 * time.Millisecond)
	}
	sameDevice(t, before, h.await(first.UID, Running))
	h.end(first)
	h.awaitForgotten(first.UID)
	sameDevice(t, before, h.second.await(second.UID, Running))
	if d := h.control.Devices(); len(d) != 1 {
		t.Errorf("devices: %+v", d)
	}
}

// Without a store a workload's pod has no device, and says what is missing. A device
// that was the pod's own before it asked for the workload's goes with the pod.
func TestWorkloadSwitched(t *testing.T) {
	h := newHosts(t)
	h.halt()
	h.boot()
	_, pod := h.ordinal("db")
	h.mustAttach(pod)
	h.reasonSays(pod.UID, "set Config.Identities")
	h.end(pod)
	h.awaitForgotten(pod.UID)

	_, own := h.ordinal("own")
	own.Features.Workload = false
	h.mustAttach(own)
	before := h.await(own.UID, Running)
	h.Detach(t.Context(), own.SandboxID)
	h.await(own.UID, Stopped)
	h.halt()
	h.boot(quickLease(h.store, "n1"))
	_, shared := h.ordinal("shared")
	shared.UID = own.UID
	h.mustAttach(shared)
	h.until("it is up", func() bool { s := h.statusOf(own.UID); return s.State == Running && s.SandboxID == shared.SandboxID },
		func() string { return h.statusOf(own.UID).Reason })
	after := h.statusOf(own.UID)
	if after.NodeID == before.NodeID {
		t.Error("the pod's own device became the workload's")
	}
	n := h.find(shared.SandboxID)
	n.update(func(r *record) { r.Retried = false })
	h.end(shared)
	h.awaitForgotten(own.UID)
	if d := h.control.Devices(); len(d) != 1 || d[0].ID != after.NodeID {
		t.Errorf("devices: %+v, want the workload's alone", d)
	}
	if _, err := os.Stat(filepath.Join(h.dir, own.UID)); err == nil {
		t.Error("keys are left")
	}
}

// A workload's device outlives a record that was lost with the pod, and a pod that is
// called like the workload's but has a device of its own.
func TestWorkloadOutlives(t *testing.T) {
	h := newHosts(t)
	p, pod := h.ordinal("db")
	h.mustAttach(pod)
	before := h.await(pod.UID, Running)
	h.halt()
	if err := os.WriteFile(filepath.Join(h.dir, pod.UID, podstate.RecordFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.End()
	h.boot(quickLease(h.store, "n1"), func(cfg *Config) { cfg.Grace = 200 * time.Millisecond })
	if err := h.Sync(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	h.awaitForgotten(pod.UID)
	if d := h.control.Devices(); len(d) != 1 || d[0].ID != before.NodeID {
		t.Fatalf("devices: %+v", d)
	}

	h.age(before.NodeID, time.Hour)
	_, own := h.second.ordinal("own")
	own.Features.Workload = false
	h.second.mustAttach(own)
	h.second.await(own.UID, Running)
	h.store.noList.Store(true) // one identity is asked for, not all
	err := h.second.find(own.SandboxID).takeName(t.Context(), h.devices(), own.Hostname)
	if err == nil || !strings.Contains(err.Error(), "of the workload default/db-0") {
		t.Errorf("taking the workload's name: %v", err)
	}
	h.second.end(own)
	h.second.awaitForgotten(own.UID)
	_, next := h.second.ordinal("next")
	h.second.mustAttach(next)
	sameDevice(t, before, h.second.await(next.UID, Running))
}

// Of many hosts that want an identity at the same time, one serves it at a time. When its
// pod ends, the next host has the same device at once.
func TestWorkloadContenders(t *testing.T) {
	h := newHosts(t)
	all := []*world{h.world, h.second}
	for i := range 3 {
		w := &world{t: t, control: h.control, tailnet: h.tailnet, dir: t.TempDir()}
		t.Cleanup(w.halt)
		w.boot(quickLease(h.store, "more"+string(rune('a'+i))))
		all = append(all, w)
	}
	pods := map[*world]Pod{}
	for i, w := range all {
		_, pods[w] = w.ordinal("db" + string(rune('a'+i)))
	}
	for w, pod := range pods {
		go w.Attach(context.Background(), pod)
	}
	running := func() (on []*world) {
		for w, pod := range pods {
			if w.statusOf(pod.UID).State == Running {
				on = append(on, w)
			}
		}
		return on
	}
	var first NodeStatus
	for left := len(all); left > 0; left-- {
		h.until("one of them runs", func() bool { return len(running()) > 0 }, func() string { return "" })
		for range 50 {
			if on := running(); len(on) != 1 {
				t.Fatalf("%d run at once", len(on))
			}
			time.Sleep(10 * time.Millisecond)
		}
		w := running()[0]
		node := w.statusOf(pods[w].UID)
		if first.NodeID == "" {
			first = node
		}
		sameDevice(t, first, node)
		w.end(pods[w])
		w.awaitForgotten(pods[w].UID)
		delete(pods, w)
	}
	if id := h.store.stored[WorkloadKey{"default", "db-0"}]; id.Generation != uint64(len(all)) {
		t.Errorf("the identity was taken %d times by %d pods", id.Generation, len(all))
	}
}
