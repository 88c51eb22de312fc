// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tailcfg"

	"tailscale-nri/k3d/lab/control"
)

// viewRows are what the nodes know of each other, and what then passes under a
// policy that allows all. Nothing here is counted as refused by a packet
// filter: it does not come so far.
var viewRows = []struct {
	name   string
	change func(l *lane)
	ab, ba string
}{
	{"a does not see b", func(l *lane) { l.view(l.a, l.b, control.View{Hidden: true}) }, none, none},
	{"b does not see a", func(l *lane) { l.view(l.b, l.a, control.View{Hidden: true}) }, none, none},
	{"neither sees the other", func(l *lane) {
		l.view(l.a, l.b, control.View{Hidden: true})
		l.view(l.b, l.a, control.View{Hidden: true})
	}, none, none},
	{"b's key has expired, as a is told", func(l *lane) { l.view(l.a, l.b, control.View{Expired: true}) }, none, none},
	{"a's key has expired, as b is told", func(l *lane) { l.view(l.b, l.a, control.View{Expired: true}) }, none, none},
	{"b is jailed at a", func(l *lane) { l.view(l.a, l.b, control.View{Jailed: true}) }, every, none},
	{"a is jailed at b", func(l *lane) { l.view(l.b, l.a, control.View{Jailed: true}) }, none, every},
	{"b has another IPv4 address, and no IPv6", func(l *lane) {
		was := l.addr(l.b, 4)
		l.must(l.control.SetAddresses(l.id(l.b), moved))
		l.until("b has it", func() bool { return l.has(l.b, moved) && !l.has(l.b, l.addr(l.b, 6)) },
			func() string { return fmt.Sprint(l.statusOf(l.b.spec.UID).Addresses) })
		l.policy(control.AllowAll)
		if got := ask(l.a.Pod, was, probes[0]); got != silent {
			l.t.Errorf("%s: b's old address: %s", l.way, got)
		}
	}, "tcp4:80 tcp4:81 udp4:53 udp4:54 ping4", "tcp4:80 tcp4:81 udp4:53 udp4:54 ping4"},
	{"b is deleted, and comes back as another", func(l *lane) {
		was, id := l.addr(l.b, 4), l.id(l.b)
		l.must(l.control.Delete(id))
		l.until("b is another", func() bool { return l.id(l.b) != id && l.statusOf(l.b.spec.UID).State == Running },
			func() string { return fmt.Sprintf("%+v", l.statusOf(l.b.spec.UID)) })
		l.warm()
		if got := ask(l.a.Pod, was, probes[0]); got != silent {
			l.t.Errorf("%s: b's old address: %s", l.way, got)
		}
	}, every, every},
	{"b logs in again with another node key", func(l *lane) {
		key, addr := l.device(l.b).NodeKey, l.addr(l.b, 4)
		l.must(l.control.Expire(l.id(l.b)))
		l.until("b has another key", func() bool {
			return l.device(l.b).NodeKey != key && l.statusOf(l.b.spec.UID).State == Running && l.addr(l.b, 4) == addr
		}, func() string { return fmt.Sprintf("%+v", l.statusOf(l.b.spec.UID)) })
		l.warm()
	}, every, every},
	{"b is deleted, and may not come back", func(l *lane) {
		was := [2]netip.Addr{l.addr(l.b, 4), l.addr(l.b, 6)}
		l.control.AddFault(control.Fault{Status: 500, Message: "no keys today"})
		l.must(l.control.Delete(l.id(l.b)))
		l.until("b is out", func() bool { return l.statusOf(l.b.spec.UID).State == Pending },
			func() string { return fmt.Sprintf("%+v", l.statusOf(l.b.spec.UID)) })
		l.until("a has heard", func() bool { return l.peer(l.a, was[0]) == nil }, func() string { return "" })
		l.expectSilence(was)
	}, none, none},
	{"b is detached", func(l *lane) {
		was := [2]netip.Addr{l.addr(l.b, 4), l.addr(l.b, 6)}
		l.must(l.Detach(context.Background(), l.b.spec.SandboxID))
		l.await(l.b.spec.UID, Stopped)
		l.expectSilence(was)
	}, none, none},
	{"b starts again in a new backend", func(l *lane) {
		l.must(l.Detach(context.Background(), l.b.spec.SandboxID))
		l.await(l.b.spec.UID, Stopped)
		l.mustAttach(l.b.spec)
		l.await(l.b.spec.UID, Running)
		l.warm()
	}, every, every},
	{"b is not signed in a locked tailnet", func(l *lane) {
		l.must(l.control.Lock(l.id(l.a)))
		l.until("a has dropped b", func() bool { return l.peer(l.a, l.addr(l.b, 4)) == nil }, func() string { return "" })
	}, none, none},
	{"a is not signed in a locked tailnet", func(l *lane) {
		l.must(l.control.Lock(l.id(l.b)))
		l.until("b has dropped a", func() bool { return l.peer(l.b, l.addr(l.a, 4)) == nil }, func() string { return "" })
	}, none, none},
	{"both are signed in a locked tailnet", func(l *lane) {
		l.must(l.control.Lock(l.id(l.a), l.id(l.b)))
		l.until("both know of the lock", func() bool {
			return l.backend(l.a).TailnetLockStatus().Enabled && l.backend(l.b).TailnetLockStatus().Enabled
		}, func() string { return "" })
		l.warm()
	}, every, every},
}

// moved is an address that no device has been given.
var moved = netip.MustParseAddr("100.99.1.1")

// Who does not see whom, or sees another than there was, gets nothing through
// on either way.
func TestLocalViews(t *testing.T) {
	for i, row := range viewRows {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			eachLane(newLanes(t, fmt.Sprintf("view%d", i)), func(l *lane) {
				l.policy(control.AllowAll)
				row.change(l)
				if l.statusOf(l.b.spec.UID).State == Running {
					l.policy(control.AllowAll)
				}
				// One after the other: see warm.
				l.expect(t, l.a, l.b, row.ab)
				l.expect(t, l.b, l.a, row.ba)
			})
		})
	}
}

func (l *lane) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Error(err)
	}
}

func (l *lane) view(node, peer side, v control.View) {
	l.t.Helper()
	l.must(l.control.SetView(l.id(node), l.id(peer), v))
}

// device is what the control plane knows of the node.
func (l *lane) device(s side) control.Device {
	for _, d := range l.control.Devices() {
		if d.ID == l.id(s) {
			return d
		}
	}
	return control.Device{}
}

// peer is what the node knows of the peer with an address, nil if nothing.
func (l *lane) peer(s side, addr netip.Addr) *ipnstate.PeerStatus {
	for _, p := range l.backend(s).Status().Peer {
		for _, ip := range p.TailscaleIPs {
			if ip == addr {
				return p
			}
		}
	}
	return nil
}

// expectSilence asks for b at addresses that it had, IPv4 first.
func (l *lane) expectSilence(was [2]netip.Addr) {
	l.t.Helper()
	for _, p := range probes {
		if p.passes() != answered {
			continue
		}
		if got := ask(l.a.Pod, was[(p.family-4)/2], p); got != silent {
			l.t.Errorf("%s: %v to the b that is no more is %s", l.way, p, got)
		}
	}
}

// A backend's own pings are answered, though packets that they become are read
// from no pod.
func TestLocalPings(t *testing.T) {
	eachLane(newLanes(t, "bping"), func(l *lane) {
		l.policy(control.AllowAll)
		for _, kind := range []tailcfg.PingType{tailcfg.PingTSMP, tailcfg.PingICMP, tailcfg.PingDisco} {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			res, err := l.backend(l.a).Ping(ctx, l.addr(l.b, 4), kind, 0)
			cancel()
			if err != nil || res.Err != "" {
				t.Errorf("%s: %v ping: %+v, %v", l.way, kind, res, err)
			}
		}
	})
}
