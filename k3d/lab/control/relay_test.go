// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netmon"
	"tailscale.com/net/stun"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
)

// TestDERP has one client send to another by the DERP map that nodes get.
func TestDERP(t *testing.T) {
	ctx := testContext(t)
	s := start(t, Config{})
	privA, privB := key.NewNode(), key.NewNode()
	client := func(priv key.NodePrivate) *derphttp.Client {
		c := derphttp.NewRegionClient(priv, logger.Discard, netmon.NewStatic(), func() *tailcfg.DERPRegion {
			return s.derpMap.Regions[derpRegion]
		})
		t.Cleanup(func() { c.Close() })
		if err := c.Connect(ctx); err != nil {
			t.Fatalf("connecting to DERP: %v", err)
		}
		return c
	}
	a, b := client(privA), client(privB)
	// A client that has connected may not be known to others yet; one that is
	// answered is.
	if err := b.SendPing([8]byte{1}); err != nil {
		t.Fatal(err)
	}
	receive[derp.PongMessage](t, ctx, b)
	if err := a.Send(privB.Public(), []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if p := receive[derp.ReceivedPacket](t, ctx, b); string(p.Data) != "hello" || p.Source != privA.Public() {
		t.Errorf("got %q from %v", p.Data, p.Source)
	}
}

// receive waits for a message of one type.
func receive[M derp.ReceivedMessage](t *testing.T, ctx context.Context, c *derphttp.Client) M {
	t.Helper()
	defer context.AfterFunc(ctx, func() { c.Close() })() // Recv knows no context
	for {
		msg, err := c.Recv()
		if err != nil {
			t.Fatalf("waiting for a %T: %v", *new(M), err)
		}
		if m, ok := msg.(M); ok {
			return m
		}
	}
}

func TestSTUN(t *testing.T) {
	s := start(t, Config{})
	node := s.derpMap.Regions[derpRegion].Nodes[0]
	c, err := net.Dial("udp", netip.AddrPortFrom(s.cfg.Addr, uint16(node.STUNPort)).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	txID := stun.NewTxID()
	for _, packet := range [][]byte{[]byte("no request"), stun.Request(txID)} {
		if _, err := c.Write(packet); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 1500)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	gotID, addr, err := stun.ParseResponse(buf[:n])
	if err != nil || gotID != txID || addr.String() != c.LocalAddr().String() {
		t.Errorf("answer %v %v, %v; want %v", gotID, addr, err, c.LocalAddr())
	}
}
