// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tailscale.com/control/controlhttp"
	"tailscale.com/control/ts2021"
	"tailscale.com/tailcfg"
	"tailscale.com/tstime"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
)

// wireNode speaks the control protocol and nothing else: for what a real node
// does not show, and for many at once.
type wireNode struct {
	s       *Server
	name    string
	machine key.MachinePrivate
	node    key.NodePrivate
	disco   key.DiscoPrivate
	http    *http.Client
}

func newWireNode(t *testing.T, s *Server, name string) *wireNode {
	n := &wireNode{s: s, name: name, machine: key.NewMachine(), node: key.NewNode(), disco: key.NewDisco()}
	tr := &http.Transport{Protocols: new(http.Protocols), MaxConnsPerHost: 1}
	tr.Protocols.SetUnencryptedHTTP2(true)
	tr.DialTLSContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		c, err := (&controlhttp.Dialer{
			Hostname:        s.controlAddr.Addr().String(),
			HTTPPort:        fmt.Sprint(s.controlAddr.Port()),
			HTTPSPort:       controlhttp.NoPort,
			MachineKey:      n.machine,
			ControlKey:      s.noise.Public(),
			ProtocolVersion: uint16(tailcfg.CurrentCapabilityVersion),
			Dialer:          new(net.Dialer).DialContext,
			Logf:            logger.Discard,
			Clock:           tstime.StdClock{},
		}).Dial(ctx)
		if err != nil {
			return nil, err
		}
		return ts2021.NewConn(c.Conn, func() {}), nil
	}
	n.http = &http.Client{Transport: tr}
	t.Cleanup(tr.CloseIdleConnections)
	return n
}

func (n *wireNode) post(ctx context.Context, path string, body any) (*http.Response, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, "POST", "https://"+n.s.controlAddr.String()+path, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return n.http.Do(req)
}

func (n *wireNode) register(ctx context.Context, change func(*tailcfg.RegisterRequest)) (*tailcfg.RegisterResponse, error) {
	req := &tailcfg.RegisterRequest{
		Version:  tailcfg.CurrentCapabilityVersion,
		NodeKey:  n.node.Public(),
		Hostinfo: &tailcfg.Hostinfo{Hostname: n.name},
	}
	if change != nil {
		change(req)
	}
	res, err := n.post(ctx, "/machine/register", req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	out := new(tailcfg.RegisterResponse)
	return out, json.NewDecoder(res.Body).Decode(out)
}

func (n *wireNode) login(ctx context.Context, authKey string) error {
	res, err := n.register(ctx, func(r *tailcfg.RegisterRequest) {
		r.Auth = &tailcfg.RegisterResponseAuth{AuthKey: authKey}
	})
	if err == nil && (res.Error != "" || !res.MachineAuthorized) {
		err = fmt.Errorf("refused: %q", res.Error)
	}
	return err
}

// publish tells endpoints as a real node does, apart from its poll.
func (n *wireNode) publish(ctx context.Context, endpoints ...netip.AddrPort) error {
	res, err := n.post(ctx, "/machine/map", &tailcfg.MapRequest{
		Version:   tailcfg.CurrentCapabilityVersion,
		NodeKey:   n.node.Public(),
		DiscoKey:  n.disco.Public(),
		Endpoints: endpoints,
		OmitPeers: true,
		Hostinfo:  &tailcfg.Hostinfo{Hostname: n.name, NetInfo: &tailcfg.NetInfo{PreferredDERP: derpRegion}},
	})
	if err != nil {
		return err
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("publishing: HTTP %d", res.StatusCode)
	}
	return nil
}

// poll opens a netmap stream and hands each message to f until f says stop.
func (n *wireNode) poll(ctx context.Context, f func(*tailcfg.MapResponse) (stop bool)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	res, err := n.post(ctx, "/machine/map", &tailcfg.MapRequest{
		Version: tailcfg.CurrentCapabilityVersion,
		NodeKey: n.node.Public(),
		Stream:  true,
	})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(res.Body)
		return fmt.Errorf("HTTP %d: %s", res.StatusCode, body)
	}
	for {
		var size uint32
		if err := binary.Read(res.Body, binary.LittleEndian, &size); err != nil {
			return err
		}
		msg := new(tailcfg.MapResponse)
		if err := json.NewDecoder(io.LimitReader(res.Body, int64(size))).Decode(msg); err != nil {
			return err
		}
		if f(msg) {
			return nil
		}
	}
}

// view is what a stream has told so far of the peers.
type view map[tailcfg.NodeID]*tailcfg.Node

func (v view) apply(msg *tailcfg.MapResponse) {
	for _, p := range append(msg.Peers, msg.PeersChanged...) {
		v[p.ID] = p
	}
	for _, c := range msg.PeersChangedPatch {
		v[c.NodeID].Endpoints, v[c.NodeID].Online = c.Endpoints, c.Online
	}
	for _, id := range msg.PeersRemoved {
		delete(v, id)
	}
}

var endpoint = netip.MustParseAddrPort("192.0.2.1:41641")

func TestDeltas(t *testing.T) {
	ctx := testContext(t)
	s := start(t, Config{})
	a, b := newWireNode(t, s, "a"), newWireNode(t, s, "b")
	for _, n := range []*wireNode{a, b} {
		if err := n.login(ctx, s.NewKey("tag:x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.publish(ctx, endpoint); err != nil {
		t.Fatal(err)
	}

	moved := netip.MustParseAddrPort("192.0.2.2:41641")
	var step int
	err := a.poll(ctx, func(msg *tailcfg.MapResponse) bool {
		step++
		switch step {
		case 1:
			if len(msg.Peers) != 1 || msg.Node == nil || msg.DERPMap == nil || len(msg.PacketFilters["base"]) == 0 || msg.DNSConfig == nil {
				t.Fatalf("the first message is not a whole netmap: %+v", msg)
			}
			if p := msg.Peers[0]; *p.Online || p.HomeDERP != derpRegion || !slices.Equal(p.Endpoints, []netip.AddrPort{endpoint}) {
				t.Errorf("peer %+v", p)
			}
			if err := b.publish(ctx, moved); err != nil {
				t.Error(err)
			}
		case 2:
			if len(msg.Peers)+len(msg.PeersChanged) != 0 || len(msg.PeersChangedPatch) != 1 || msg.Node != nil {
				t.Errorf("a moved peer is told by %+v, want a patch", msg)
			} else if got := msg.PeersChangedPatch[0].Endpoints; !slices.Equal(got, []netip.AddrPort{moved}) {
				t.Errorf("endpoints %v, want %v", got, moved)
			}
			if d, _ := device(s.Devices(), "b"); !s.nodes.remove(d.ID) {
				t.Error("b is not there to delete")
			}
		case 3:
			if len(msg.PeersRemoved) != 1 {
				t.Errorf("a deleted peer is told by %+v", msg)
			}
		}
		return step == 3 || t.Failed()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestDeleted follows the node that is deleted: its poll ends, the next gets
// 404, it cannot come back by its node key, and with a new auth key it is
// another device.
func TestDeleted(t *testing.T) {
	ctx := testContext(t)
	s := start(t, Config{})
	n := newWireNode(t, s, "n")
	if err := n.login(ctx, s.NewKey("tag:x")); err != nil {
		t.Fatal(err)
	}
	before, _ := device(s.Devices(), "n")
	if err := n.poll(ctx, func(*tailcfg.MapResponse) bool {
		s.nodes.remove(before.ID)
		return false
	}); !errors.Is(err, io.EOF) {
		t.Fatalf("the poll of a deleted node ended with %v, want its end", err)
	}
	if err := n.poll(ctx, nil); err == nil || !strings.Contains(err.Error(), "HTTP 404: node not found") {
		t.Errorf("the next poll: %v", err)
	}
	if res, err := n.register(ctx, nil); err != nil || res.AuthURL == "" {
		t.Errorf("login without a key: %+v, %v; want a URL", res, err)
	}
	if err := n.login(ctx, s.NewKey("tag:x")); err != nil {
		t.Fatal(err)
	}
	if after, ok := device(s.Devices(), "n"); !ok || after.ID == before.ID {
		t.Errorf("device %q after %q", after.ID, before.ID)
	}
}

// TestLogin is about node keys: what a restart, a renewal and a logout do.
func TestLogin(t *testing.T) {
	ctx := testContext(t)
	s := start(t, Config{})
	n := newWireNode(t, s, "n")
	authKey := s.NewKey("tag:x")
	if err := n.login(ctx, authKey); err != nil {
		t.Fatal(err)
	}
	first, _ := device(s.Devices(), "n")

	if res, err := n.register(ctx, nil); err != nil || res.AuthURL != "" || res.NodeKeyExpired {
		t.Errorf("a restart with the node key: %+v, %v", res, err)
	}
	stranger := newWireNode(t, s, "stranger")
	stranger.node = n.node
	if res, err := stranger.register(ctx, nil); err != nil || res.AuthURL == "" {
		t.Errorf("the same node key on another machine: %+v, %v; want a URL", res, err)
	}

	old := n.node
	n.node = key.NewNode()
	if err := n.login(ctx, authKey); err == nil {
		t.Error("a spent key let a new node key in")
	}
	res, err := n.register(ctx, func(r *tailcfg.RegisterRequest) {
		r.OldNodeKey = old.Public()
		r.Auth = &tailcfg.RegisterResponseAuth{AuthKey: s.NewKey("tag:y")}
	})
	if err != nil || res.Error != "" {
		t.Fatalf("renewal: %+v, %v", res, err)
	}
	renewed, _ := device(s.Devices(), "n")
	if renewed.ID != first.ID || !slices.Equal(renewed.Addresses, first.Addresses) {
		t.Errorf("renewed as %q %v, was %q %v", renewed.ID, renewed.Addresses, first.ID, first.Addresses)
	}
	if !slices.Equal(renewed.Tags, []string{"tag:y"}) {
		t.Errorf("tags %v, want those of the new key", renewed.Tags)
	}

	logout := func(r *tailcfg.RegisterRequest) { r.Expiry = time.Unix(123, 0) }
	if res, err := n.register(ctx, logout); err != nil || res.Error != "" {
		t.Fatalf("logout: %+v, %v", res, err)
	}
	if d, ok := device(s.Devices(), "n"); !ok || !d.Expired {
		t.Errorf("after the logout: %+v, %v; want it expired", d, ok)
	}
	if res, err := n.register(ctx, nil); err != nil || !res.NodeKeyExpired {
		t.Errorf("login after the logout: %+v, %v; want NodeKeyExpired", res, err)
	}

	e := newWireNode(t, s, "e")
	if err := e.login(ctx, s.keys.mint(AuthKey{Ephemeral: true, Expires: time.Now().Add(time.Hour)}).secret); err != nil {
		t.Fatal(err)
	}
	if _, err := e.register(ctx, logout); err != nil {
		t.Fatal(err)
	}
	if _, ok := device(s.Devices(), "e"); ok {
		t.Error("an ephemeral node is listed after its logout")
	}
}

// TestUnknownRequests must not end the process, which holds all nodes.
func TestUnknownRequests(t *testing.T) {
	ctx := testContext(t)
	s := start(t, Config{})
	n := newWireNode(t, s, "n")
	for _, path := range []string{"/machine/tka/sync/send", "/machine/audit-log", "/nonsense"} {
		res, err := n.post(ctx, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusNotFound {
			t.Errorf("%s: HTTP %d, want 404", path, res.StatusCode)
		}
	}
	for _, path := range []string{"/machine/register", "/machine/map"} {
		res, err := n.post(ctx, path, "not an object")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusBadRequest {
			t.Errorf("%s with a bad body: HTTP %d, want 400", path, res.StatusCode)
		}
	}
	if err := n.login(ctx, s.NewKey("tag:x")); err != nil {
		t.Errorf("after that: %v", err)
	}
}

// TestBurst has 60 nodes come up at once, and each see all others with their
// endpoints, online.
func TestBurst(t *testing.T) {
	const nodes = 60
	ctx := testContext(t)
	s := start(t, Config{})
	authKey := s.NewReusableKey("tag:x")
	var wg, seen sync.WaitGroup
	seen.Add(nodes)
	for i := range nodes {
		n := newWireNode(t, s, fmt.Sprintf("n%d", i))
		wg.Go(func() {
			if err := n.comeUp(ctx, authKey, nodes-1, &seen); err != nil {
				t.Errorf("%s: %v", n.name, err)
			}
		})
	}
	wg.Wait()
}

// comeUp logs n in, polls and publishes, until it has seen its peers and all
// others have seen theirs.
func (n *wireNode) comeUp(ctx context.Context, authKey string, peers int, seen *sync.WaitGroup) error {
	sawAll := sync.OnceFunc(seen.Done)
	defer sawAll() // or a failure here holds all others
	if err := n.login(ctx, authKey); err != nil {
		return err
	}
	published := make(chan error, 1)
	got := view{}
	return n.poll(ctx, func(msg *tailcfg.MapResponse) bool {
		if len(got) == 0 && msg.Node != nil {
			go func() { published <- n.publish(ctx, endpoint) }()
		}
		got.apply(msg)
		if len(got) < peers {
			return false
		}
		for _, p := range got {
			if len(p.Endpoints) == 0 || p.Online == nil || !*p.Online {
				return false
			}
		}
		sawAll()
		seen.Wait() // no node goes offline before all have seen all online
		return <-published == nil
	})
}
