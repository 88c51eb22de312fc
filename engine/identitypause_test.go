// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"tailscale-nri/engine/internal/nstest"
)

// otherHost is a host n1 with a process and a network of its own, next to the
// world's n2, whose store it shares.
func (w *world) otherHost(store IdentityStore, wayIn order) *secondHost {
	w.t.Helper()
	m := &secondHost{t: w.t, dir: filepath.Join(w.t.TempDir(), "n1")}
	m.boot = wayIn
	m.boot.Do, m.boot.Dir, m.boot.Identities, m.boot.Host = "boot", m.dir, serveIdentities(w.t, store), "n1"
	m.start()
	w.t.Cleanup(func() {
		m.cmd.Process.Signal(syscall.SIGCONT)
		m.kill()
		if w.t.Failed() {
			w.t.Logf("n1's last log:\n%s", m.log.String())
		}
	})
	return m
}

// start starts a process of the host.
func (m *secondHost) start() {
	m.t.Helper()
	if l, err := netlink.LinkByName("copy0"); err == nil { // of a process that was killed
		netlink.LinkDel(l)
	}
	m.process = startProcess(m.t, true)
	connect(m.t, m.cmd.Process.Pid)
	m.tell(m.boot)
}

// attach attaches a pod of the test's process.
func (m *secondHost) attach(pod Pod) {
	m.t.Helper()
	pod.NetNS = strings.Replace(pod.NetNS, "self", fmt.Sprint(os.Getpid()), 1)
	m.tell(order{Do: "attach", Pod: pod})
}

func (m *secondHost) awaitState(uid string, what string, ok func(NodeStatus) bool) (found NodeStatus) {
	m.t.Helper()
	m.until(what, func(all []NodeStatus) bool {
		for _, s := range all {
			if s.UID == uid && ok(s) {
				found = s
				return true
			}
		}
		return false
	})
	return found
}

func isRunning(s NodeStatus) bool { return s.State == Running }

// arrivals counts datagrams by their text.
type arrivals struct {
	mu   sync.Mutex
	seen map[string]int
}

func (c *arrivals) of(text string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen[text]
}

// countDatagrams counts what comes to UDP port 9 of the pod.
func countDatagrams(t *testing.T, p *nstest.Pod) *arrivals {
	t.Helper()
	var conn net.PacketConn
	p.Do(func() (err error) {
		conn, err = net.ListenPacket("udp", ":9")
		return err
	})
	t.Cleanup(func() { conn.Close() })
	c := &arrivals{seen: map[string]int{}}
	go func() {
		buf := make([]byte, 100)
		for {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			c.mu.Lock()
			c.seen[string(buf[:n])]++
			c.mu.Unlock()
		}
	}()
	return c
}

// sendDatagrams sends the text from the pod, fifty times a second, until the end of
// the test.
func sendDatagrams(t *testing.T, p *nstest.Pod, to netip.Addr, text string) {
	t.Helper()
	var conn net.Conn
	p.Do(func() (err error) {
		conn, err = net.Dial("udp", netip.AddrPortFrom(to, 9).String())
		return err
	})
	end, ended := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(end); <-ended; conn.Close() })
	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			case <-time.After(20 * time.Millisecond):
				conn.Write([]byte(text))
			}
		}
	}()
}

// A host that was stopped while another took the identity goes on with its old state:
// no peer takes a packet of it, the new holder does not notice, and it stops by itself,
// even if it does not reach the store.
func TestWorkloadPausedHolder(t *testing.T) {
	for name, cutOff := range map[string]bool{"store": false, "no store": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			testPausedHolder(t, w, order{APIURL: w.control.APIURL(), ControlURL: w.control.ControlURL()}, cutOff)
			if d := w.control.Devices(); len(d) != 2 {
				t.Errorf("devices: %+v", d)
			}
		})
	}
}

// cutOffStore is the store of a host that may be cut off from it.
type cutOffStore struct {
	IdentityStore
	cutOff atomic.Bool
}

func (s *cutOffStore) Load(ctx context.Context, key WorkloadKey) (Identity, error) {
	if s.cutOff.Load() {
		return Identity{}, errStoreAway
	}
	return s.IdentityStore.Load(ctx, key)
}

func (s *cutOffStore) Save(ctx context.Context, key WorkloadKey, id Identity) (string, error) {
	if s.cutOff.Load() {
		return "", errStoreAway
	}
	return s.IdentityStore.Save(ctx, key, id)
}

func testPausedHolder(t *testing.T, w *world, wayIn order, cutOff bool) {
	store := newIdentities()
	w.boot(quickLease(store, "n2"))
	client, podClient := w.pod("client")
	w.mustAttach(podClient)
	addr := w.await(podClient.UID, Running).Addresses[0]
	got := countDatagrams(t, client)

	ofN1 := &cutOffStore{IdentityStore: store}
	n1 := w.otherHost(ofN1, wayIn)
	old, podOld := w.ordinal("old")
	n1.attach(podOld)
	before := n1.awaitState(podOld.UID, "the first is up", isRunning)
	sendDatagrams(t, old, addr, "old")
	w.until("the client hears the first", func() bool { return got.of("old") > 10 }, func() string { return "" })

	stop(t, n1)
	atStop := got.of("old")
	next, podNext := w.ordinal("next")
	w.mustAttach(podNext)
	w.reasonSays(podNext.UID, "waits for host n1")
	sameDevice(t, before, w.await(podNext.UID, Running))
	sendDatagrams(t, next, addr, "next")
	w.until("the client hears the second", func() bool { return got.of("next") > 10 }, func() string { return "" })

	// The pod of the old host has sent all the time: its packets wait in its link's
	// socket.
	ofN1.cutOff.Store(cutOff)
	resumed, heard := time.Now(), got.of("old")
	n1.cmd.Process.Signal(syscall.SIGCONT)
	n1.awaitState(podOld.UID, "the first has stopped", func(s NodeStatus) bool { return s.State == Pending })
	t.Logf("stopped by itself after %v", time.Since(resumed))
	time.Sleep(2 * time.Second)
	ofN1.cutOff.Store(false)
	n1.awaitState(podOld.UID, "the first waits", func(s NodeStatus) bool { return strings.Contains(s.Reason, "waits for host n2") })
	if late := got.of("old") - heard; late != 0 {
		t.Errorf("the client took %d packets of the first after the second was up (%d on the way when it was stopped)", late, heard-atStop)
	}
	was := got.of("next")
	w.until("the client hears the second still", func() bool { return got.of("next") > was+10 }, func() string { return "" })
	sameDevice(t, before, w.statusOf(podNext.UID))
	if id, _ := store.Load(t.Context(), keyOf(podNext)); id.Generation != 2 || id.Holder.Host != "n2" {
		t.Errorf("the identity is of generation %d and %+v: the first made the second register again", id.Generation, id.Holder)
	}
}

// stop stops all threads of the host's process, and returns when they are.
func stop(t *testing.T, m *secondHost) {
	t.Helper()
	if err := m.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // what was on its way is there
}

// A process that was killed comes back with its old state, without a new key. If its
// identity was taken meanwhile, it finds that out and waits.
func TestWorkloadKilled(t *testing.T) {
	w, store := newWorld(t), newIdentities()
	w.boot(quickLease(store, "n2"))
	n1 := w.otherHost(store, order{APIURL: w.control.APIURL(), ControlURL: w.control.ControlURL()})
	_, pod := w.ordinal("old")
	n1.attach(pod)
	before := n1.awaitState(pod.UID, "it is up", isRunning)
	n1.kill()
	n1.start()
	sameDevice(t, before, n1.awaitState(pod.UID, "it is up again", isRunning))
	if id, err := store.Load(t.Context(), keyOf(pod)); err != nil || id.Generation != 1 || w.control.Counters().KeysMinted != 1 {
		t.Errorf("generation %d (%v), %d auth keys: want one of each", id.Generation, err, w.control.Counters().KeysMinted)
	}
	n1.kill()
	_, next := w.ordinal("next")
	w.mustAttach(next)
	sameDevice(t, before, w.await(next.UID, Running))
	n1.start()
	n1.awaitState(pod.UID, "it waits", func(s NodeStatus) bool { return strings.Contains(s.Reason, "waits for host n2") })
	w.until("the second goes on", func() bool { return w.statusOf(next.UID).State == Running }, func() string { return fmt.Sprint(w.statusOf(next.UID)) })
	if id, _ := store.Load(t.Context(), keyOf(pod)); id.Generation != 2 {
		t.Errorf("generation %d, want 2", id.Generation)
	}
}

// A holder that was stopped before it asked the store for the last time does not
// register. One that was stopped with that answer and a good auth key takes the device
// from the next holder, for a moment: the next one holds the identity, and it does not.
func TestWorkloadPausedRegistering(t *testing.T) {
	for at, generation := range map[point]uint64{{stepMint, 1, true}: 2, {stepIdentity, 2, true}: 3} {
		t.Run(at.String(), func(t *testing.T) { testPausedRegistering(t, at, generation) })
	}
}

func testPausedRegistering(t *testing.T, at point, generation uint64) {
	w, store := newWorld(t), newIdentities()
	w.boot(quickLease(store, "n2"))
	n1 := w.otherHost(store, order{APIURL: w.control.APIURL(), ControlURL: w.control.ControlURL()})
	n1.tell(order{Do: "watch", Watch: true, Die: &at, Stop: true})
	_, old := w.ordinal("old")
	n1.attach(old)
	w.until("the first is stopped with its key", func() bool { return slices.Contains(n1.taken(), at) }, func() string { return fmt.Sprint(n1.taken()) })
	_, next := w.ordinal("next")
	w.mustAttach(next)
	before := w.await(next.UID, Running)

	resumed := time.Now()
	n1.cmd.Process.Signal(syscall.SIGCONT)
	n1.awaitState(old.UID, "the first waits", func(s NodeStatus) bool { return strings.Contains(s.Reason, "waits for host n2") })
	w.until("the second has the device for good", func() bool {
		id, err := store.Load(t.Context(), keyOf(next))
		d := w.control.Devices()
		return err == nil && id.Generation == generation && id.Registered && id.Holder.Host == "n2" && len(d) == 1 && d[0].NodeKey == w.nodeKey(next.UID) &&
			w.statusOf(next.UID).State == Running
	}, func() string { return fmt.Sprint(w.statusOf(next.UID), w.control.Devices()) })
	t.Logf("the second has it for good %v after the first went on", time.Since(resumed))
	sameDevice(t, before, w.statusOf(next.UID))
	for range 100 {
		if s := w.statusOf(next.UID); s.State != Running {
			t.Fatalf("and then it is %s: %s", s.State, s.Reason)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
