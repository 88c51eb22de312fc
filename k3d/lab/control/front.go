// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"golang.org/x/net/http2"
	"tailscale.com/control/controlhttp/controlhttpserver"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/util/rands"
)

// bodyLimit is more than a request with a hundred endpoints needs.
const bodyLimit = 1 << 20

// startFront opens the login server at its port, for the first time or after an
// outage.
func (s *Server) startFront() error {
	port := s.cfg.ControlPort
	if s.controlAddr.IsValid() {
		port = s.controlAddr.Port()
	}
	ln, addr, err := s.listen(port)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /key", s.serveKey)
	mux.HandleFunc("/ts2021", s.serveNoise)
	mux.HandleFunc("/generate_204", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })

	s.mu.Lock()
	defer s.mu.Unlock()
	s.controlAddr = addr
	s.front = &http.Server{Handler: s.outage.guard(mux)}
	s.serve(s.front, ln)
	return nil
}

// stopFront closes the listener and cuts every connection.
func (s *Server) stopFront() {
	s.mu.Lock()
	srv := s.front
	s.front = nil
	var cut []io.Closer
	for c := range s.conns {
		cut = append(cut, c)
	}
	s.mu.Unlock()
	if srv != nil {
		srv.Close()
	}
	for _, c := range cut {
		c.Close()
	}
}

func (s *Server) serveKey(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, &tailcfg.OverTLSPublicKeyResponse{PublicKey: s.noise.Public(), LegacyPublicKey: s.noise.Public()})
}

// serveNoise ends a node's Noise connection and serves HTTP/2 inside it.
func (s *Server) serveNoise(w http.ResponseWriter, r *http.Request) {
	conn, err := controlhttpserver.AcceptHTTP(r.Context(), w, r, s.noise, nil)
	if err != nil {
		s.log.Debug("accepting Noise", "err", err)
		return
	}
	defer conn.Close()
	if !s.track(conn) {
		return
	}
	defer s.untrack(conn)

	// The request's own context ends with the hijack's handler, not with the
	// connection; http2 makes one per request that does.
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	machine := conn.Peer()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /machine/register", func(w http.ResponseWriter, r *http.Request) { s.serveRegister(w, r, machine) })
	mux.HandleFunc("POST /machine/map", func(w http.ResponseWriter, r *http.Request) { s.serveMap(w, r, machine) })
	mux.HandleFunc("POST /machine/update-health", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // what a node says of its health is nothing to this tailnet
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /machine/tka/bootstrap", s.serveLockGenesis)
	mux.HandleFunc("GET /machine/tka/sync/offer", s.serveLockOffer)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.log.Debug("unknown request", "method", r.Method, "path", r.URL.Path)
		http.NotFound(w, r)
	})
	// It is deprecated in favour of http.Server, which takes a listener and does not say when a connection has ended.
	new(http2.Server).ServeConn(conn, &http2.ServeConnOpts{ //nolint:staticcheck // see above
		Context:    ctx,
		BaseConfig: &http.Server{Handler: s.outage.guard(mux), ErrorLog: discardLog},
	})
}

// track has stopFront cut c; false if it came too late for that.
func (s *Server) track(c io.Closer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.front == nil {
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *Server) untrack(c io.Closer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// serveMap answers a map request: a change that the node tells of itself, a
// poll, or both.
func (s *Server) serveMap(w http.ResponseWriter, r *http.Request, machine key.MachinePublic) {
	var req tailcfg.MapRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, bodyLimit)).Decode(&req); err != nil {
		http.Error(w, "bad map request: "+err.Error(), http.StatusBadRequest)
		return
	}
	if no := s.denial.Load(); no != nil {
		http.Error(w, no.text, no.status)
		return
	}
	n := s.nodes.lookup(req.NodeKey, machine)
	if n == nil {
		// Word for word what production says, request ID and all.
		http.Error(w, "node not found\nREQ-"+rands.HexString(20), http.StatusNotFound)
		return
	}
	// tailcfg.MapRequest.Stream: since version 68 a streaming request changes
	// nothing, whatever it carries.
	if !(req.Stream && req.Version >= 68) {
		s.nodes.update(n, &req)
	}
	if !req.Stream && req.OmitPeers {
		w.WriteHeader(http.StatusOK)
		return
	}
	if err := s.serveStream(r.Context(), w, n, &req); err != nil {
		s.log.Error("serving map poll", "node", n.StableID, "err", err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// serveRegister lets a node in, or says why not.
func (s *Server) serveRegister(w http.ResponseWriter, r *http.Request, machine key.MachinePublic) {
	var req tailcfg.RegisterRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, bodyLimit)).Decode(&req); err != nil {
		http.Error(w, "bad register request: "+err.Error(), http.StatusBadRequest)
		return
	}
	if req.NodeKey.IsZero() || req.Version == 0 || req.Hostinfo == nil {
		http.Error(w, "register request without node key, version or hostinfo", http.StatusBadRequest)
		return
	}
	if req.Followup != "" {
		// The URL that the node waits for cannot be visited.
		<-r.Context().Done()
		return
	}
	res, err := s.register(r.Context(), &req, machine)
	if err != nil {
		s.log.Error("registering node", "hostname", req.Hostinfo.Hostname, "err", err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSON(w, http.StatusOK, res)
}

// register decides as production does: a logout ends the login; a key that
// comes along is checked even if the node key is good; without one, a known
// node key suffices; else there is a URL to visit.
func (s *Server) register(ctx context.Context, req *tailcfg.RegisterRequest, machine key.MachinePublic) (*tailcfg.RegisterResponse, error) {
	n := s.nodes.lookup(req.NodeKey, machine)
	log := s.log.With("hostname", req.Hostinfo.Hostname, "node", req.NodeKey.ShortString())
	switch {
	case !req.Expiry.IsZero() && req.Expiry.Before(time.Now()):
		if n != nil {
			log.Info("node logged out", "removed", s.nodes.expire(n))
		}
		// Not NodeKeyExpired: the client would log out once more with that, and
		// call a second such answer an error.
		return &tailcfg.RegisterResponse{MachineAuthorized: true}, nil
	case req.Auth != nil && req.Auth.AuthKey != "":
		k, err := s.useKey(req, machine)
		if err != nil {
			log.Info("refused a login", "reason", err)
			return &tailcfg.RegisterResponse{Error: err.Error()}, nil
		}
		return s.admit(ctx, req, machine, k)
	case n != nil:
		return s.nodes.renewed(n), nil
	}
	log.Info("a node came without a key")
	return &tailcfg.RegisterResponse{AuthURL: s.ControlURL() + "/a/" + rands.HexString(12)}, nil
}

func (s *Server) admit(ctx context.Context, req *tailcfg.RegisterRequest, machine key.MachinePublic, k AuthKey) (*tailcfg.RegisterResponse, error) {
	res, admitted, err := s.registrar.register(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("admitting node: %w", err)
	}
	d := s.nodes.admit(admitted, res, req, machine, k)
	if d.Expired {
		res = &tailcfg.RegisterResponse{MachineAuthorized: true, NodeKeyExpired: true}
	}
	s.log.Info("node logged in", "id", d.ID, "name", d.Name, "tags", d.Tags, "key", k.ID)
	return res, nil
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	writeBody(w, v)
}

func writeBody(w http.ResponseWriter, v any) { json.NewEncoder(w).Encode(v) }
