// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tailscale.com/net/netmon"
	"tailscale.com/types/logger"
)

func TestInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f inFlight
		waited := func(atMost time.Duration) time.Duration {
			start := time.Now()
			f.wait(t.Context(), atMost)
			return time.Since(start)
		}
		if d := waited(time.Hour); d != 0 {
			t.Errorf("waited %v for nothing", d)
		}
		endA, endB := f.begin(), f.begin()
		if d := waited(time.Second); d != time.Second {
			t.Errorf("waited %v, want no longer than a second", d)
		}
		time.AfterFunc(time.Second, endA)
		time.AfterFunc(2*time.Second, func() { endA(); endB() })
		if d := waited(time.Hour); d != 2*time.Second {
			t.Errorf("waited %v for what took 1 s and 2 s", d)
		}
		time.AfterFunc(time.Second, f.begin())
		if d := waited(time.Hour); d != time.Second {
			t.Errorf("waited %v for what took another second", d)
		}
		defer f.begin()()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		f.wait(ctx, time.Hour)
	})
}

// The control client dials when those that go first are done.
func TestControlDialerWaits(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	n := newNode(&Engine{log: slog.New(slog.DiscardHandler)}, t.TempDir(), record{Pod: Pod{UID: "a"}})
	dialer := n.controlDialer(netmon.NewStatic(), logger.Discard, &connections{})
	var done atomic.Bool
	returned := n.e.returning.begin()
	dialed := make(chan error, 1)
	go func() {
		c, err := dialer.SystemDial(t.Context(), "tcp", ln.Addr().String())
		if err == nil {
			c.Close()
		}
		if !done.Load() {
			err = errors.Join(err, errors.New("dialed before"))
		}
		dialed <- err
	}()
	select {
	case err := <-dialed:
		t.Fatal(err)
	case <-time.After(50 * time.Millisecond): // or it has not come to it yet
	}
	done.Store(true)
	returned()
	if err := <-dialed; err != nil {
		t.Error(err)
	}
}

// A node that never comes back keeps no other from its control plane, nor a pod
// that came meanwhile from its link.
func TestReturningHangs(t *testing.T) {
	w := newWorld(t)
	w.boot()
	_, pod := w.pod("a")
	w.mustAttach(pod)
	before := w.await(pod.UID, Running)
	w.halt()

	w.boot()
	w.returning.begin()
	_, late := w.pod("late")
	if err := w.Sync(t.Context(), []Pod{pod, late}, nil); err != nil {
		t.Fatal(err)
	}
	w.await(late.UID, Running)
	if after := w.await(pod.UID, Running); after.NodeID != before.NodeID {
		t.Errorf("node %s, was %s", after.NodeID, before.NodeID)
	}
}
