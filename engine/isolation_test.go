// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"tailscale.com/tstime"

	"tailscale-nri/engine/internal/nstest"
	"tailscale-nri/engine/internal/podnet"
	"tailscale-nri/engine/internal/podstate"
	"tailscale-nri/engine/tailnet"
)

// stall holds the first setting of addresses until it is released, and with it
// the engine and the backend of the node whose turn it is.
type stall struct {
	taken    atomic.Bool
	begun    chan struct{}
	released chan struct{}
}

func newStall(t *testing.T, w *world) *stall {
	s := &stall{begun: make(chan struct{}), released: make(chan struct{})}
	t.Cleanup(func() { close(s.released) }) // before the world halts
	w.boot(func(c *Config) {
		c.onStep = func(st step, taken bool) {
			if st == stepAddresses && !taken && s.taken.CompareAndSwap(false, true) {
				close(s.begun)
				<-s.released
			}
		}
	})
	return s
}

// promptly is a bound on what takes milliseconds on an idle machine.
const promptly = 3 * time.Second

func expectPrompt(t *testing.T, what string, f func()) {
	t.Helper()
	start := time.Now()
	f()
	if took := time.Since(start); took > promptly {
		t.Errorf("%s took %v", what, took)
	}
}

// While one pod's node is stuck in the middle of a change, and its pod floods
// the link, the others come, go and talk, and the stuck one's own calls return.
func TestStallAndFlood(t *testing.T) {
	w := newWorld(t)
	s := newStall(t, w)
	stuck, podStuck := w.pod("stuck")
	w.mustAttach(podStuck)
	<-s.begun
	flood(t, stuck)

	a, podA := w.pod("a")
	b, podB := w.pod("b")
	expectPrompt(t, "attaching two pods", func() {
		w.mustAttach(podA)
		w.mustAttach(podB)
	})
	w.await(podA.UID, Running)
	nodeB := w.await(podB.UID, Running)
	expectTalk(t, a, b, nodeB.Addresses[0])
	if s := w.statusOf(podStuck.UID); s.State != Pending {
		t.Errorf("the stuck node is %s", s.State)
	}
	ctx := context.Background()
	expectPrompt(t, "Status", func() { w.Status() })
	_, late := w.pod("late")
	expectPrompt(t, "Sync", func() { w.Sync(ctx, []Pod{podStuck, podA, podB, late}, nil) })
	w.await(late.UID, Running)
	expectPrompt(t, "Attach, Detach and Forget of the stuck pod", func() {
		_, err := w.Attach(ctx, podStuck)
		if err := errors.Join(err, w.Detach(ctx, podStuck.SandboxID), w.Forget(ctx, podStuck.SandboxID)); err != nil {
			t.Error(err)
		}
	})
	w.Forget(ctx, podB.SandboxID)
	w.awaitForgotten(podB.UID)
}

// A flood out of one pod, to a peer that is away, and another one into its
// node's UDP port leave the others' traffic alone.
func TestFlood(t *testing.T) {
	w := newWorld(t)
	w.boot()
	loud, podLoud := w.pod("loud")
	away, podAway := w.pod("away")
	a, podA := w.pod("a")
	b, podB := w.pod("b")
	for _, pod := range []Pod{podLoud, podAway, podA, podB} {
		w.mustAttach(pod)
	}
	w.await(podLoud.UID, Running)
	addr := w.await(podAway.UID, Running).Addresses[0]
	w.await(podA.UID, Running)
	nodeB := w.await(podB.UID, Running)
	w.Detach(context.Background(), podAway.SandboxID)
	w.await(podAway.UID, Stopped)
	away.End()

	var floods []*atomic.Int64
	loud.Do(func() error { floods = append(floods, blast(t, netip.AddrPortFrom(addr, 9))); return nil })
	port := w.find(podLoud.SandboxID).record().Port
	floods = append(floods, blast(t, netip.AddrPortFrom(nstest.HostAddr, port)))
	conn := dialEcho(t, a, b, nodeB.Addresses[0])
	for _, most := range []int64{5000, 10_000} { // before and while the others talk
		w.until(fmt.Sprintf("each flood has %d datagrams", most), func() bool {
			if err := exchange(conn, "word"); err != nil {
				t.Fatal(err)
			}
			return floods[0].Load() >= most && floods[1].Load() >= most
		}, func() string { return fmt.Sprint(floods[0].Load(), floods[1].Load()) })
		expectTalk(t, a, b, nodeB.Addresses[0])
	}
}

// flood has a pod send to the whole tailnet, though its node has given it no
// address.
func flood(t *testing.T, p *nstest.Pod) {
	t.Helper()
	h := p.Netlink()
	ts0, err := h.LinkByName(podnet.PodLink)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(
		h.AddrAdd(ts0, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(100, 99, 0, 1), Mask: net.CIDRMask(32, 32)}}),
		h.RouteAdd(&netlink.Route{LinkIndex: ts0.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4(100, 64, 0, 0), Mask: net.CIDRMask(10, 32)}}),
	)
	if err != nil {
		t.Fatal(err)
	}
	p.Do(func() error { blast(t, netip.MustParseAddrPort("100.100.0.1:9")); return nil })
}

// blast sends datagrams to the address until the test ends, from a socket of
// the thread's netns: 20 at a time, a thousand times a second at most. It counts them.
func blast(t *testing.T, to netip.AddrPort) *atomic.Int64 {
	sent := &atomic.Int64{}
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Error(err)
		return sent
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.Cleanup(func() {
		stop()
		<-done
		t.Logf("%d datagrams were sent to %v", sent.Load(), to)
		if sent.Load() < 1000 {
			t.Errorf("%d datagrams to %v are no flood", sent.Load(), to)
		}
		c.Close()
	})
	go func() {
		defer close(done)
		for buf := make([]byte, 1000); tstime.Sleep(ctx, time.Millisecond); {
			for range 20 {
				if _, err := c.Write(buf); err == nil {
					sent.Add(1)
				}
			}
		}
	}()
	return sent
}

// expectTalk holds a conversation of a hundred questions and answers.
func expectTalk(t *testing.T, a, b *nstest.Pod, addr netip.Addr) {
	t.Helper()
	conn := dialEcho(t, a, b, addr)
	var took []time.Duration
	for range 100 {
		start := time.Now()
		if err := exchange(conn, "word"); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	t.Logf("median %v, worst %v", took[50], took[99])
	if took[50] > time.Second || took[99] > 10*time.Second {
		t.Errorf("a question is answered after %v in the median and %v at worst", took[50], took[99])
	}
}

// hangingTailnet mints no first key.
type hangingTailnet struct {
	tailnet.Tailnet
	tailnet.DeviceAPI
	taken atomic.Bool
	hangs chan struct{}
}

func (d *hangingTailnet) NewAuthKey(ctx context.Context, n tailnet.Node) (string, error) {
	if d.taken.CompareAndSwap(false, true) {
		close(d.hangs)
		<-ctx.Done()
		return "", ctx.Err()
	}
	return d.Tailnet.NewAuthKey(ctx, n)
}

// An attempt to come up that hangs is ended and made again, while other pods
// come up.
func TestHangingAttach(t *testing.T) {
	w := newWorld(t)
	access := &hangingTailnet{Tailnet: w.tailnet, DeviceAPI: w.devices(), hangs: make(chan struct{})}
	w.tailnet = access
	w.boot(func(c *Config) { c.AttachTimeout = 5 * time.Second })
	_, hangs := w.pod("hangs")
	w.mustAttach(hangs)
	<-access.hangs
	_, other := w.pod("other")
	w.mustAttach(other)
	w.await(other.UID, Running)
	w.await(hangs.UID, Running)
}

// A record from before a reboot leads to no netns of today, whatever numbers
// that has.
func TestRecordOfAnotherBoot(t *testing.T) {
	w := newWorld(t)
	w.boot()
	p, pod := w.pod("a")
	w.mustAttach(pod)
	before := w.await(pod.UID, Running)
	w.halt()
	// The kernel knows nothing of the link after a reboot.
	if err := podnet.Remove(podnet.HostLink(pod.SandboxID)); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(w.dir, pod.UID)
	r, err := podstate.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	r.NetNS.Boot = "5f3c0a5e-0000-4000-8000-000000000000"
	if _, err := podstate.Save(dir, &r); err != nil {
		t.Fatal(err)
	}
	w.boot()
	w.await(pod.UID, Stopped)
	if addrs, err := addresses(p); err == nil {
		t.Errorf("ts0 is there, with %v", addrs)
	}
	w.until("it is attached again", func() bool { // once what it did has ended
		w.mustAttach(pod)
		return w.statusOf(pod.UID).State == Running
	}, func() string { return w.statusOf(pod.UID).Reason })
	if after := w.statusOf(pod.UID); after.NodeID != before.NodeID {
		t.Errorf("the node is %s, was %s", after.NodeID, before.NodeID)
	}
}
