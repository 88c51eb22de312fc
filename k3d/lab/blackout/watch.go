// SPDX-License-Identifier: BSD-3-Clause

package blackout

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"tailscale-nri/k3d/lab/internal/nsthread"
)

// Place is where a flow begins or ends.
type Place struct {
	Name string
	PID  int        // of a process in its network namespace
	Addr netip.Addr // in the tailnet
}

// Flows are datagrams and a TCP connection, both ways, between a peer and each of some pods, for tests that do to them
// what they like.
type Flows struct {
	traffic *traffic
	from    time.Duration
}

// Gap is the longest silence of one pod's flows.
type Gap struct {
	Name         string
	In, Out, TCP time.Duration // from peer to pod, from pod to peer, of the connection in either direction
	Broken       error         // why the connection broke; nil if it did not
}

// Watch connects the peer with the pods and returns when all flows go well, one packet each every so often.
func Watch(ctx context.Context, peer Place, pods []Place, every time.Duration) (*Flows, error) {
	from, err := peer.open()
	if err != nil {
		return nil, err
	}
	defer from.ns.Close()
	var to []place
	for _, pod := range pods {
		p, err := pod.open()
		if err != nil {
			return nil, err
		}
		defer p.ns.Close()
		to = append(to, p)
	}
	t, err := openTraffic(ctx, from, to, every)
	if err != nil {
		return nil, err
	}
	if err := t.awaitWell(ctx); err != nil {
		t.close()
		return nil, err
	}
	return &Flows{traffic: t, from: t.now()}, nil
}

func (p Place) open() (place, error) {
	ns, err := nsthread.OpenNetNS(p.PID)
	return place{p.Name, ns, p.Addr}, err
}

// AwaitWell returns when all flows have gone well for a second.
func (f *Flows) AwaitWell(ctx context.Context) error { return f.traffic.awaitWell(ctx) }

// Close ends the flows and returns what was missed since Watch.
func (f *Flows) Close() []Gap {
	var gaps []Gap
	for _, o := range f.traffic.outcomes(f.from, f.traffic.now()) {
		gaps = append(gaps, Gap{o.name, o.in.gap, o.out.gap, o.tcp.gap, o.broken})
	}
	f.traffic.close()
	return gaps
}

// String is one line.
func (g Gap) String() string {
	line := fmt.Sprintf("%s: in %d ms, out %d ms, TCP %d ms", g.Name, g.In.Milliseconds(), g.Out.Milliseconds(), g.TCP.Milliseconds())
	if g.Broken != nil {
		line += fmt.Sprintf(" (broke: %v)", g.Broken)
	}
	return line
}
