// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What was dialed and is still open does not keep a pod's netns alive after Close.
func TestDNSCloseLetsGo(t *testing.T) {
	pod, c, ns := dnsPod(t, false)
	d, err := OpenDNS(t.Context(), ns)
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range []netip.Addr{c.IP4, c.IP6} {
		to := netip.AddrPortFrom(addr, 53)
		u, err := d.DialUDP(to)
		if err != nil {
			t.Fatal(err)
		}
		s, err := d.DialTCP(t.Context(), to)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { u.Close(); s.Close() }) // until then they are not garbage
	}
	pod.End()
	d.Close()
	// eth0, and so its other end, goes with the netns.
	h := c.Netlink()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		_, err := h.LinkByName("pod1")
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the netns is there still: %v", err)
		}
	}
}

// However much is asked for at once, few threads do it.
func TestNetnsThreads(t *testing.T) {
	_, _, ns := dnsPod(t, false)
	h, err := ns.open()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	var wg sync.WaitGroup
	var now, most atomic.Int32
	for range 200 {
		wg.Go(func() {
			err := inNetns(int(h), func() error {
				n := now.Add(1)
				defer now.Add(-1)
				for was := most.Load(); n > was && !most.CompareAndSwap(was, n); was = most.Load() {
				}
				time.Sleep(2 * time.Millisecond)
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := int(most.Load()); n > cap(netnsThreads) {
		t.Errorf("%d threads at once, want %d at most", n, cap(netnsThreads))
	}
}

// What the kernel can do is not concluded from a failure, nor from what a pod has.
func TestOwnedTablesProbe(t *testing.T) {
	if can, err := probeOwnedTables(); !can || err != nil {
		t.Errorf("probeOwnedTables = %v, %v", can, err)
	}
	calls := 0
	can := onceKnown(func() (bool, error) {
		if calls++; calls == 1 {
			return false, unix.EMFILE
		}
		return true, nil
	})
	if _, err := can(); !errors.Is(err, unix.EMFILE) {
		t.Errorf("the first time: %v", err)
	}
	for range 2 {
		if yes, err := can(); !yes || err != nil {
			t.Errorf("afterwards: %v, %v", yes, err)
		}
	}
	if calls != 2 {
		t.Errorf("%d calls", calls)
	}
}
