// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"context"
	"encoding/json"
	"net/netip"
	"testing"

	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tailcfg"
)

// awaitNews polls as n, does something at the first message, and returns all
// later ones up to the first that is enough.
func (n *wireNode) awaitNews(t *testing.T, ctx context.Context, do func(), enough func(*tailcfg.MapResponse) bool) *tailcfg.MapResponse {
	t.Helper()
	var last *tailcfg.MapResponse
	if err := n.poll(ctx, func(msg *tailcfg.MapResponse) bool {
		if last == nil {
			last = msg
			do()
			return false
		}
		last = msg
		return enough(msg)
	}); err != nil {
		t.Fatal(err)
	}
	return last
}

// TestPolicy looks at the packet filter that a node is sent.
func TestPolicy(t *testing.T) {
	ctx := testContext(t)
	s := start(t, Config{})
	a, deviceA := join(t, s, "a")
	_, deviceB := join(t, s, "b")
	own := func(d Device) (v4, v6 string) { return d.Addresses[0].String(), d.Addresses[1].String() }
	a4, a6 := own(deviceA)
	b4, b6 := own(deviceB)
	web := tailcfg.PortRange{First: 80, Last: 81}
	for _, tt := range []struct {
		name string
		rule Rule
		want string
	}{
		{"none", Rule{}, `null`},
		{"to another", Rule{Src: []string{"*"}, Dst: []string{deviceB.ID}}, `null`},
		{
			"by ID and port",
			Rule{Src: []string{deviceB.ID}, Dst: []string{deviceA.ID}, Ports: []tailcfg.PortRange{web}, Proto: []int{6}},
			`[{"SrcIPs":["` + b4 + `","` + b6 + `"],"DstPorts":[{"IP":"` + a4 + `","Ports":{"First":80,"Last":81}},` +
				`{"IP":"` + a6 + `","Ports":{"First":80,"Last":81}}],"IPProto":[6]}]`,
		},
		{
			"one family",
			Rule{Src: []string{"*"}, Dst: []string{"100.64.0.0/10"}},
			`[{"SrcIPs":["*"],"DstPorts":[{"IP":"` + a4 + `","Ports":{"First":0,"Last":65535}}]}]`,
		},
		{
			"from an address",
			Rule{Src: []string{"192.0.2.7"}, Dst: []string{"fd7a::/16"}},
			`[{"SrcIPs":["192.0.2.7"],"DstPorts":[{"IP":"` + a6 + `","Ports":{"First":0,"Last":65535}}]}]`,
		},
		{"by another tag", Rule{Src: []string{"*"}, Dst: []string{"tag:y"}}, `null`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.SetPolicy(AllowAll)
			msg := a.awaitNews(t, ctx, func() { s.SetPolicy(tt.rule) },
				func(msg *tailcfg.MapResponse) bool { return msg.PacketFilters != nil })
			got, err := json.Marshal(msg.PacketFilters["base"])
			if err != nil || string(got) != tt.want {
				t.Errorf("got %s (%v), want %s", got, err, tt.want)
			}
		})
	}
}

// TestViews has a node told of another what is not so.
func TestViews(t *testing.T) {
	ctx := testContext(t)
	s := start(t, Config{})
	a, deviceA := join(t, s, "a")
	b, deviceB := join(t, s, "b")
	set := func(from, of Device, v View) func() {
		return func() {
			if err := s.SetView(from.ID, of.ID, v); err != nil {
				t.Error(err)
			}
		}
	}
	changed := func(msg *tailcfg.MapResponse) bool { return len(msg.PeersChanged) > 0 }
	removed := func(msg *tailcfg.MapResponse) bool { return len(msg.PeersRemoved) > 0 }
	as := netip.MustParseAddr("100.99.1.1")

	a.awaitNews(t, ctx, set(deviceA, deviceB, View{Hidden: true}), removed)
	if p := a.awaitNews(t, ctx, set(deviceA, deviceB, View{Expired: true}), changed).PeersChanged[0]; !p.Expired || p.KeyExpiry.IsZero() {
		t.Errorf("an expired peer: %+v", p)
	}
	if p := a.awaitNews(t, ctx, set(deviceA, deviceB, View{Jailed: true}), changed).PeersChanged[0]; !p.IsJailed || p.Expired {
		t.Errorf("a jailed peer: %+v", p)
	}
	if p := a.awaitNews(t, ctx, set(deviceA, deviceB, View{As: as}), changed).PeersChanged[0]; len(p.Addresses) != 1 || p.Addresses[0].Addr() != as || p.AllowedIPs[0].Addr() != as {
		t.Errorf("a masked peer: %+v", p)
	}
	// b has been told before; it has not looked since.
	appears := func(msg *tailcfg.MapResponse) bool {
		return changed(msg) && msg.PeersChanged[0].SelfNodeV4MasqAddrForThisPeer != nil
	}
	set(deviceA, deviceB, View{})()
	if p := b.awaitNews(t, ctx, set(deviceA, deviceB, View{As: as}), appears).PeersChanged[0]; *p.SelfNodeV4MasqAddrForThisPeer != as {
		t.Errorf("the node that appears as another is told: %+v", p)
	}
	if err := s.SetView("nNone", deviceA.ID, View{}); err == nil {
		t.Error("a device that is not there looks at another")
	}
}

func TestSetAddresses(t *testing.T) {
	ctx := testContext(t)
	s := start(t, Config{})
	a, deviceA := join(t, s, "a")
	as := netip.MustParseAddr("100.99.1.1")
	msg := a.awaitNews(t, ctx, func() {
		if err := s.SetAddresses(deviceA.ID, as); err != nil {
			t.Error(err)
		}
	}, func(msg *tailcfg.MapResponse) bool { return msg.Node != nil })
	if got := msg.Node.Addresses; len(got) != 1 || got[0].Addr() != as {
		t.Errorf("addresses %v", got)
	}
}

// TestLock has real nodes drop the one that is not signed.
func TestLock(t *testing.T) {
	ctx := testContext(t)
	s := start(t, Config{})
	a := newNode(t, s, "a", s.NewKey("tag:x"))
	b := newNode(t, s, "b", s.NewKey("tag:x"))
	c := newNode(t, s, "c", s.NewKey("tag:x"))
	idA, idB, idC := a.up(t, ctx).Self.ID, b.up(t, ctx).Self.ID, c.up(t, ctx).Self.ID
	sees := func(hostnames ...string) func(*ipnstate.Status) bool {
		return func(st *ipnstate.Status) bool {
			for _, h := range hostnames {
				if peer(st, h) == nil {
					return false
				}
			}
			return len(st.Peer) == len(hostnames)
		}
	}
	a.awaitStatus(t, ctx, "all", sees("b", "c"))
	if err := s.Sign(string(idC)); err == nil {
		t.Error("a tailnet without a lock signs")
	}
	if err := s.Lock(string(idA), string(idB)); err != nil {
		t.Fatal(err)
	}
	a.awaitStatus(t, ctx, "b alone", sees("b"))
	b.awaitStatus(t, ctx, "a alone", sees("a"))
	if err := s.Sign(string(idC)); err != nil {
		t.Fatal(err)
	}
	a.awaitStatus(t, ctx, "all again", sees("b", "c"))
	if err := s.Lock(); err == nil {
		t.Error("a tailnet was locked twice")
	}
}
