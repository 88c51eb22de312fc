// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tailscale-nri/engine/internal/nstest"
	"tailscale-nri/engine/internal/podnet"
)

// The pods of these tests have names of their own: a link that goes with the pod of another
// test is replaced by a whole one.

// stallCompletion attaches an empty pod in a world that it boots. It returns once the
// completion of the pod's link has begun, which waits for release.
func stallCompletion(t *testing.T, w *world, name string, f Features, change ...func(*Config)) (p *nstest.Pod, pod Pod, release func()) {
	t.Helper()
	var links atomic.Int64 // how often a link was made: the second time completes it
	begun, released := make(chan struct{}), make(chan struct{})
	release = sync.OnceFunc(func() { close(released) })
	t.Cleanup(release) // before the world halts
	w.boot(append(change, func(c *Config) {
		c.onStep = func(s step, taken bool) {
			if s == stepLink && !taken && links.Add(1) == 2 {
				close(begun)
				<-released
			}
		}
	})...)
	p, pod = w.pod(name)
	pod.Features = f
	if err := w.AttachEmpty(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	<-begun
	return p, pod, release
}

// The link of an empty sandbox lets nothing pass until its node has completed it, and no
// container is created before that: its Attach waits.
func TestAttachEmpty(t *testing.T) {
	w := newWorld(t)
	p, pod, release := stallCompletion(t, w, "stalled", Features{})
	expectHostEnd(t, pod, false)
	w.until("its node is in the tailnet", func() bool { return w.statusOf(pod.UID).NodeID != "" }, func() string { return w.statusOf(pod.UID).Reason })
	time.Sleep(100 * time.Millisecond)
	if addrs, err := addresses(p); err != nil || len(addrs) != 0 {
		t.Errorf("ts0 has the addresses %v (%v) before the link is whole", addrs, err)
	}
	if w.Serves(pod.UID, pod.SandboxID) {
		t.Error("it is said to have its whole link")
	}
	attached := make(chan error, 1)
	go func() {
		_, err := w.Attach(t.Context(), pod)
		attached <- err
	}()
	select {
	case err := <-attached:
		t.Errorf("a container may be created before the link is whole (%v)", err)
	case <-time.After(100 * time.Millisecond):
	}
	release()
	if err := <-attached; err != nil {
		t.Fatal(err)
	}
	expectHostEnd(t, pod, true)
	if !w.Serves(pod.UID, pod.SandboxID) {
		t.Error("its link is whole, and it is said to have none")
	}
	w.await(pod.UID, Running)
}

// expectHostEnd checks whether a pod's host end is up, with its drop filter.
func expectHostEnd(t *testing.T, pod Pod, whole bool) {
	t.Helper()
	host, err := netlink.LinkByName(podnet.HostLink(pod.SandboxID))
	if err != nil {
		t.Fatal(err)
	}
	filters, err := netlink.FilterList(host, netlink.HANDLE_MIN_INGRESS)
	if err != nil {
		t.Fatal(err)
	}
	up := host.Attrs().Flags&net.FlagUp != 0
	if up != whole || (len(filters) == 1) != whole {
		t.Errorf("the host end is up: %v, with %d filters; want it whole: %v", up, len(filters), whole)
	}
}

// A link that cannot be completed keeps the pod's containers from being created, and the
// error says why.
func TestAttachEmptyFails(t *testing.T) {
	w := newWorld(t)
	p, pod, release := stallCompletion(t, w, "foreign", Features{})
	// Somebody puts another interface in ts0's place.
	h := p.Netlink()
	if err := podnet.Remove(podnet.HostLink(pod.SandboxID)); err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = podnet.PodLink
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "other"}); err != nil {
		t.Fatal(err)
	}
	release()
	if _, err := w.Attach(t.Context(), pod); err == nil {
		t.Fatal("a container may be created beside an interface that is not ours")
	} else if !strings.Contains(err.Error(), "the pod has an interface ts0 that is not ours") {
		t.Errorf("the error is %v", err)
	}
	ts0, err := h.LinkByName(podnet.PodLink)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkDel(ts0); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Attach(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	expectHostEnd(t, pod, true)
	w.await(pod.UID, Running)
}

// A link that cannot be completed keeps the node from being up and the pod's containers
// from being created. The guard completes it as soon as that can be done.
func TestAttachEmptyIsRestored(t *testing.T) {
	w := newWorld(t)
	_, pod, release := stallCompletion(t, w, "restored", Features{})
	host, err := netlink.LinkByName(podnet.HostLink(pod.SandboxID))
	if err != nil {
		t.Fatal(err)
	}
	other := &netlink.U32{ // in the drop filter's place
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: host.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: 1, Protocol: unix.ETH_P_ALL,
		},
		ClassId: netlink.MakeHandle(1, 1),
	}
	if err := netlink.FilterAdd(other); err != nil {
		t.Fatal(err)
	}
	release()
	w.until("it is pending for that reason", func() bool {
		s := w.statusOf(pod.UID)
		return s.State == Pending && strings.Contains(s.Reason, "ts0 cannot be set up: ") && strings.Contains(s.Reason, "adding the drop filter")
	}, func() string { return fmt.Sprintf("%+v", w.statusOf(pod.UID)) })
	if _, err := w.Attach(t.Context(), pod); err == nil || !strings.Contains(err.Error(), "adding the drop filter") {
		t.Errorf("a container may be created (%v)", err)
	}
	if host, err = netlink.LinkByName(host.Attrs().Name); err != nil || host.Attrs().Flags&net.FlagUp != 0 {
		t.Errorf("the host end is up without its filter (%v)", err)
	}
	if err := netlink.FilterDel(other); err != nil {
		t.Fatal(err)
	}
	w.await(pod.UID, Running)
	expectHostEnd(t, pod, true)
}

// What keeps a pod's traffic from leaving past its exit node is the same before and after
// its link is completed, and its session goes on with that.
func TestAttachEmptyWithExitNode(t *testing.T) {
	w := newWorld(t)
	var log logBuffer
	_, pod, release := stallCompletion(t, w, "exit", Features{ExitNode: "gate"},
		func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	w.until("its session is open", func() bool { return w.nodeOfUID(pod.UID).runningSession() != nil }, func() string { return "it is not" })
	release()
	w.until("ts0 has addresses", func() bool { return len(w.statusOf(pod.UID).Addresses) > 0 }, func() string { return fmt.Sprintf("%+v", w.statusOf(pod.UID)) })
	time.Sleep(10 * settleChanges)
	if n := log.count("changed from outside"); n != 0 {
		t.Errorf("%d lines say that something was changed from outside", n)
	}
}

// A pod that ends while its link is completed leaves no link.
func TestEmptyPodEnds(t *testing.T) {
	w := newWorld(t)
	_, pod, release := stallCompletion(t, w, "ends", Features{})
	if err := w.Detach(t.Context(), pod.SandboxID); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	if s := w.statusOf(pod.UID); s.State == Stopped {
		t.Error("it is stopped while its link is made")
	}
	release()
	w.await(pod.UID, Stopped)
	time.Sleep(100 * time.Millisecond)
	if found, err := podnet.Exists(podnet.HostLink(pod.SandboxID)); found || err != nil {
		t.Errorf("the link is there (%v)", err)
	}
}
