// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tailcfg"

	"tailscale-nri/k3d/lab/control"
)

// viewRows are the nodes' views of each other, and what then passes under a policy that
// allows all. The packet filter refuses nothing here, since packets do not reach it.
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
	{"b has been hidden from a, and is back", func(l *lane) {
		l.view(l.a, l.b, control.View{Hidden: true})
		l.policy(control.AllowAll)
		if got := l.ask(l.a, l.b, probes[0]); got != silent {
			l.t.Errorf("%s: the hidden b: %s", l.way, got)
		}
		l.view(l.a, l.b, control.View{})
		l.policy(control.AllowAll)
		l.warm()
	}, every, every},
	{"b appears to a under another address", func(l *lane) {
		l.view(l.a, l.b, control.View{As: moved})
		l.policy(control.AllowAll)
		l.untilAnsweredAt(l.a, moved)
		seen, err := seenAs(l.b, l.a, l.addr(l.a, 4))
		if err != nil || seen != moved {
			l.t.Errorf("%s: b is seen at a as %v (%v), want %v", l.way, seen, err, moved)
		}
		// Not udp4:54: what a says of the port quotes b's other address, and
		// means nothing to b.
	}, none, "tcp4:80 tcp4:81 udp4:53 ping4"},
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
		l.find(l.b.spec.SandboxID).task.await(context.Background()) // until then it counts as attached
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

// A node that does not see the other, or sees another device than before, gets nothing
// through on either way.
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
				locally := l.deliveredLocally(l.a)
				// One after the other: see warm.
				l.expect(t, l.a, l.b, row.ab)
				l.expect(t, l.b, l.a, row.ba)
				if n := l.deliveredLocally(l.a); l.local && row.ab == every && row.ba == every && n == locally {
					t.Error("all is allowed, and nothing was delivered locally")
				}
				for _, family := range []int{4, 6} {
					udp := fmt.Sprintf("udp%d:53", family)
					l.expectComing(t, l.a, l.b, family, strings.Contains(row.ab, udp))
					l.expectComing(t, l.b, l.a, family, strings.Contains(row.ba, udp))
				}
			})
		})
	}
}

// A change that only the receiver has heard of ends a flow of the sender's, though
// nothing has changed at the sender's own node.
func TestLocalReceiverChanges(t *testing.T) {
	eachLane(newLanes(t, "recv"), func(l *lane) {
		l.expectComing(t, l.a, l.b, 4, true)
		l.view(l.b, l.a, control.View{Hidden: true})
		l.until(l.way+": b has dropped a", func() bool { return l.peer(l.b, l.addr(l.a, 4)) == nil }, func() string { return "" })
		l.expectComing(t, l.a, l.b, 4, false)
	})
}

func (l *lane) untilAnsweredAt(from side, addr netip.Addr) {
	l.t.Helper()
	var last string
	l.until(fmt.Sprintf("%s: %v answers", l.way, addr), func() bool {
		last = ask(from.Pod, addr, probes[0])
		return last == answered
	}, func() string { return last })
}

// seenAs sends UDP to a pod's address and returns where it came from.
func seenAs(from, to side, addr netip.Addr) (netip.Addr, error) {
	var receiver, sender *net.UDPConn
	to.Do(func() (err error) { receiver, err = net.ListenUDP("udp4", nil); return err })
	defer receiver.Close()
	from.Do(func() (err error) { sender, err = net.ListenUDP("udp4", nil); return err })
	defer sender.Close()
	target := netip.AddrPortFrom(addr, portOf(receiver))
	if _, err := sender.WriteToUDPAddrPort([]byte("word"), target); err != nil {
		return netip.Addr{}, err
	}
	receiver.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, source, err := receiver.ReadFromUDPAddrPort(make([]byte, 10))
	return source.Addr(), err
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

// expectComing expects that UDP from one pod gets to the other, or does not, with or
// without an answer.
func (l *lane) expectComing(t *testing.T, from, to side, family int, want bool) {
	t.Helper()
	sender, receiver := l.udp(from, family, 0), l.udp(to, family, 0)
	defer sender.Close()
	defer receiver.Close()
	target := netip.AddrPortFrom(l.addr(to, family), portOf(receiver))
	got := arrives(sender, target, receiver)
	for range 2 {
		if want && !got {
			got = arrives(sender, target, receiver)
		}
	}
	if got != want {
		t.Errorf("%s: UDP over IPv%d from %s to %s arrives: %v, want %v", l.way, family, from.spec.Name, to.spec.Name, got, want)
	}
}

// expectSilence asks for b at addresses that it had, IPv4 first.
func (l *lane) expectSilence(was [2]netip.Addr) {
	l.t.Helper()
	for _, p := range probes {
		if p.passes() != answered {
			continue
		}
		if got := ask(l.a.Pod, was[(p.family-4)/2], p); got != silent {
			l.t.Errorf("%s: %v to the b that is gone is %s", l.way, p, got)
		}
	}
}

// A backend's own pings are answered, though the packets that they become are read from
// no pod.
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
