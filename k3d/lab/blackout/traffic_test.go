// SPDX-License-Identifier: BSD-3-Clause

package blackout

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"tailscale-nri/k3d/lab/internal/nsthread"
	"tailscale-nri/k3d/lab/internal/wait"
)

// loopback is a place on this process's own loopback.
func loopback(t *testing.T, name, addr string) place {
	t.Helper()
	ns, err := nsthread.OpenNetNS(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return place{name, ns, netip.MustParseAddr(addr)}
}

// TestTraffic has all flows of two nodes come, and takes one node's away without touching the other's.
func TestTraffic(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	nodes := []place{loopback(t, "a", "127.0.0.1"), loopback(t, "b", "127.0.0.2")}
	tr, err := openTraffic(ctx, loopback(t, "peer", "127.0.0.3"), nodes, 5*ms)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.close()
	if err := tr.awaitWell(ctx); err != nil {
		t.Fatal(err)
	}
	from := tr.now()
	a := tr.links[0]
	a.udpPeer.Close() // no datagram in, nor anybody who hears those that go out
	if err := a.tcpPeer.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	a.tcpPeer.Close()
	err = wait.Until(ctx, ms, func(context.Context) error {
		if a.breakage() == nil {
			return errors.New("expected the connection to break")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := wait.Pause(ctx, 2*wellGap); err != nil {
		t.Fatal(err)
	}
	if tr.well(ctx) == nil {
		t.Error("traffic without datagrams is well")
	}
	got := tr.outcomes(from, tr.now())
	if o := got[0]; o.broken == nil || !o.in.open || !o.out.open || !o.tcp.open || o.in.gap < wellGap {
		t.Errorf("what was taken away: %+v", o)
	}
	if o := got[1]; o.name != "b" || o.broken != nil {
		t.Errorf("what was left alone: %+v", o)
	}
}

// TestOpenTrafficFails: an address that does not exist leaves nothing open.
func TestOpenTrafficFails(t *testing.T) {
	nodes := []place{loopback(t, "a", "127.0.0.1"), loopback(t, "nobody", "192.0.2.1")}
	if _, err := openTraffic(t.Context(), loopback(t, "peer", "127.0.0.3"), nodes, 5*ms); err == nil {
		t.Error("opening sockets at an address that is not there is no error")
	}
}
