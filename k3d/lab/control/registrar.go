// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"

	"tailscale.com/control/controlhttp"
	"tailscale.com/control/ts2021"
	"tailscale.com/net/memnet"
	"tailscale.com/tailcfg"
	"tailscale.com/tailcfg/nodecap"
	"tailscale.com/tstest/integration/testcontrol"
	"tailscale.com/tstime"
	"tailscale.com/types/key"
	"tailscale.com/types/opt"
)

// discardLog drops what net/http has to say about connections that were cut on
// purpose.
var discardLog = log.New(io.Discard, "", 0)

// registrar is testcontrol behind a pipe in memory: reached over Noise, as
// testcontrol insists, but by the front alone.
type registrar struct {
	tc      *testcontrol.Server
	machine key.MachinePrivate // the front's own, shared by all nodes: testcontrol's idea of it is never shown
	pub     key.MachinePublic  // testcontrol's
	ln      *memnet.Listener
	client  *http.Client
	s       *Server
}

// startRegistrar needs the DERP map.
func (s *Server) startRegistrar() error {
	r := &registrar{
		tc: &testcontrol.Server{
			Logf:             s.debugf("testcontrol"),
			DERPMap:          s.derpMap,
			MagicDNSDomain:   s.cfg.Domain,
			DNSConfig:        &tailcfg.DNSConfig{Proxied: true, Domains: []string{s.cfg.Domain}},
			AllNodesSameUser: true, // tagged nodes all belong to "tagged-devices"
			CollectServices:  opt.False,
			ExplicitBaseURL:  "http://registrar.invalid",
			DefaultNodeCapabilities: &tailcfg.NodeCapMap{
				nodecap.HTTPS: nil,
			},
		},
		machine: key.NewMachine(),
		ln:      memnet.Listen("registrar"),
		s:       s,
	}
	if err := r.readKey(); err != nil {
		return err
	}
	srv := &http.Server{Handler: r.tc, ErrorLog: discardLog}
	go func() { _ = srv.Serve(r.ln) }() // until Close

	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true) // plain to net/http; the Noise below is the encryption
	tr.DialTLSContext = r.dial
	r.client = &http.Client{Transport: tr}
	s.registrar = r
	s.onClose(func() { tr.CloseIdleConnections(); srv.Close() })
	return nil
}

// readKey asks testcontrol for its Noise key, which it also makes at that.
func (r *registrar) readKey() error {
	rec := httptest.NewRecorder()
	r.tc.ServeHTTP(rec, httptest.NewRequest("GET", "/key?v=100", nil))
	var keys tailcfg.OverTLSPublicKeyResponse
	if err := json.Unmarshal(rec.Body.Bytes(), &keys); err != nil {
		return fmt.Errorf("reading testcontrol's key: %w", err)
	}
	r.pub = keys.PublicKey
	return nil
}

// dial opens a Noise connection to testcontrol.
func (r *registrar) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	d := &controlhttp.Dialer{
		Hostname:        "127.0.0.1", // of no consequence: Dialer below knows one place only
		HTTPPort:        "80",
		HTTPSPort:       controlhttp.NoPort,
		MachineKey:      r.machine,
		ControlKey:      r.pub,
		ProtocolVersion: uint16(tailcfg.CurrentCapabilityVersion),
		Dialer: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return r.ln.Dial(ctx, network, r.ln.Addr().String())
		},
		Logf:  r.s.debugf("registrar"),
		Clock: tstime.StdClock{},
	}
	c, err := d.Dial(ctx)
	if err != nil {
		return nil, err
	}
	return ts2021.NewConn(c.Conn, func() {}), nil
}

// register has testcontrol admit a node. The caller has already decided that it
// may come in. The node gets a node key of its own there, admitted.Key, since
// testcontrol forgets no key: a deleted device that came back under its old key
// would be the old device.
func (r *registrar) register(ctx context.Context, req *tailcfg.RegisterRequest) (_ *tailcfg.RegisterResponse, admitted *tailcfg.Node, _ error) {
	nodeKey := key.NewNode().Public()
	body, err := json.Marshal(&tailcfg.RegisterRequest{
		Version:  req.Version,
		NodeKey:  nodeKey,
		Hostinfo: req.Hostinfo,
	})
	if err != nil {
		return nil, nil, err
	}
	hreq, err := http.NewRequestWithContext(ctx, "POST", "https://registrar.invalid/machine/register", bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	res, err := r.client.Do(hreq)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	var out tailcfg.RegisterResponse
	if err := json.NewDecoder(res.Body).Decode(&out); err != nil {
		return nil, nil, fmt.Errorf("reading testcontrol's answer (HTTP %d): %w", res.StatusCode, err)
	}
	if admitted = r.tc.Node(nodeKey); admitted == nil {
		return nil, nil, fmt.Errorf("testcontrol (HTTP %d) did not admit node %v", res.StatusCode, req.NodeKey.ShortString())
	}
	return &out, admitted, nil
}

// frame is testcontrol's netmap for a node, which it knows by registered,
// without the nodes in it: they are the table's to tell.
func (r *registrar) frame(registered key.NodePublic) (*tailcfg.MapResponse, error) {
	res, err := r.tc.MapResponse(&tailcfg.MapRequest{NodeKey: registered})
	if err != nil {
		return nil, err
	}
	if res == nil {
		return nil, fmt.Errorf("testcontrol does not know node %v", registered.ShortString())
	}
	res.Node, res.Peers = nil, nil
	res.UserProfiles = res.UserProfiles[:min(len(res.UserProfiles), 1)] // one and the same for each node
	return res, nil
}
