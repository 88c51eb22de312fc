// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
)

// Config describes a tailnet. Its zero value is a tailnet on 127.0.0.1 whose
// OAuth client is "lab-client" with the secret "lab-secret".
type Config struct {
	// Addr is where everything listens; the zero value is 127.0.0.1. Nodes get
	// it in URLs and in the DERP map, so it cannot be a wildcard.
	Addr netip.Addr

	// ControlPort and APIPort are TCP ports; 0 lets the kernel choose.
	ControlPort, APIPort uint16

	// OAuthClientID and OAuthClientSecret are what the API takes for a token;
	// "" is "lab-client" and "lab-secret".
	OAuthClientID, OAuthClientSecret string

	// Tags are the tags that the OAuth client and federated identities may give
	// to a key; none means any.
	Tags []string

	// TokenLife is how long an access token of the API lives, in whole seconds;
	// 0 is an hour, as in production.
	TokenLife time.Duration

	// Domain is the MagicDNS domain; "" is "lab.ts.net".
	Domain string

	// Headscale has the tailnet behave as Headscale does, where that differs: see
	// headscale.go.
	Headscale bool

	// Logger gets a line for each login, deletion and refusal; nil drops them.
	// The registrar's and the DERP server's own lines come at level debug.
	Logger *slog.Logger
}

// Server is a running tailnet. All methods may be called concurrently.
type Server struct {
	cfg       Config
	log       *slog.Logger
	noise     key.MachinePrivate
	registrar *registrar
	derpMap   *tailcfg.DERPMap
	closers   []func()
	ctx       context.Context // done at Close: ends map polls and what hangs
	cancel    context.CancelFunc

	controlAddr, apiAddr netip.AddrPort

	outage  outage
	faults  faults
	keys    *keyring
	nodes   *table
	tokens  tokens
	issuers issuers
	denial  atomic.Pointer[denial] // of map requests; nil for none

	mu    sync.Mutex
	front *http.Server           // nil while connections are refused
	conns map[io.Closer]struct{} // Noise connections, which http.Server no longer knows
}

// Start brings a tailnet up. The caller ends it with Close.
func Start(cfg Config) (_ *Server, err error) {
	cfg.setDefaults()
	if cfg.Addr.IsUnspecified() {
		return nil, fmt.Errorf("starting control plane: Addr is %v; name the address that nodes can dial", cfg.Addr)
	}
	s := &Server{
		cfg:   cfg,
		log:   cfg.Logger,
		noise: key.NewMachine(),
		conns: map[io.Closer]struct{}{},
		keys:  newKeyring(),
		nodes: newTable(cfg),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	for _, part := range []struct {
		name  string
		start func() error
	}{
		{"DERP and STUN", s.startRelay},
		{"registrar", s.startRegistrar},
		{"control plane", s.startFront},
		{"API", s.startAPI},
	} {
		if err := part.start(); err != nil {
			return nil, fmt.Errorf("starting %s: %w", part.name, err)
		}
	}
	return s, nil
}

// setDefaults fills in what the zero values stand for.
func (cfg *Config) setDefaults() {
	if !cfg.Addr.IsValid() {
		cfg.Addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if cfg.OAuthClientID == "" {
		cfg.OAuthClientID = "lab-client"
	}
	if cfg.OAuthClientSecret == "" {
		cfg.OAuthClientSecret = "lab-secret"
	}
	if cfg.TokenLife == 0 {
		cfg.TokenLife = tokenLife
	}
	if cfg.Domain == "" {
		cfg.Domain = "lab.ts.net"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
}

// Close ends all listeners and connections and waits for none of the nodes.
func (s *Server) Close() {
	s.cancel()
	s.stopFront()
	for i := len(s.closers) - 1; i >= 0; i-- {
		s.closers[i]()
	}
	s.closers = nil
}

// onClose has f called by Close, last in first out.
func (s *Server) onClose(f func()) { s.closers = append(s.closers, f) }

// ControlURL is the login server's URL, without a trailing slash.
func (s *Server) ControlURL() string { return "http://" + s.controlAddr.String() }

// APIURL is the API's base URL, without a trailing slash.
func (s *Server) APIURL() string { return "http://" + s.apiAddr.String() }

// NewKey mints a single-use key that lives for an hour and gives a node these
// tags, past the API and its faults.
func (s *Server) NewKey(tags ...string) string {
	return s.keys.mint(AuthKey{Tags: tags, Expires: time.Now().Add(time.Hour)}).secret
}

// NewReusableKey is NewKey for any number of nodes.
func (s *Server) NewReusableKey(tags ...string) string {
	return s.keys.mint(AuthKey{Tags: tags, Reusable: true, Expires: time.Now().Add(time.Hour)}).secret
}

// listen opens a TCP listener on the tailnet's address.
func (s *Server) listen(port uint16) (net.Listener, netip.AddrPort, error) {
	ln, err := net.Listen("tcp", netip.AddrPortFrom(s.cfg.Addr, port).String())
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	return ln, ln.Addr().(*net.TCPAddr).AddrPort(), nil
}

// serve runs srv on ln until one of them is closed.
func (s *Server) serve(srv *http.Server, ln net.Listener) {
	srv.ErrorLog = slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)
	go func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) && s.ctx.Err() == nil {
			s.log.Error("serving stopped", "addr", ln.Addr(), "err", err)
		}
	}()
}

// debugf is the log of the parts that take a logger.Logf.
func (s *Server) debugf(part string) logger.Logf {
	return func(format string, args ...any) {
		if s.log.Enabled(s.ctx, slog.LevelDebug) {
			s.log.Debug(fmt.Sprintf(format, args...), "part", part)
		}
	}
}
