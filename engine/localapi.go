// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"tailscale.com/ipn/ipnauth"
	"tailscale.com/ipn/localapi"
	"tailscale.com/tstime"
	"tailscale.com/types/logger"

	"tailscale-nri/engine/internal/podstate"
)

// A pod that asks for it has the LocalAPI of its own node on a unix socket, for the
// stock command line and for programs that use tailscale.com/client/local. It can read
// and change nothing: see localapiallow.go.

const (
	// socketDir is the directory, in the node's own, that the pod's containers mount.
	// They do not mount the socket, since each process makes a new one.
	socketDir  = "socket"
	socketFile = "tailscaled.sock"
)

// SocketDir makes the directory that holds the pod's LocalAPI socket, and returns its
// path. The pod's containers mount it: any user in them may connect, those of a user
// namespace too. On the host, the state directory around it lets only root in.
func (e *Engine) SocketDir(podUID string) (string, error) {
	n := e.nodeOfUID(podUID)
	if n == nil {
		return "", errUnattached
	}
	n.op.Lock()
	defer n.op.Unlock()
	if n.disk.retired {
		return "", errRetired
	}
	dir := filepath.Join(n.dir, socketDir)
	return dir, makeSocketDir(dir)
}

// makeSocketDir makes a directory that everybody may enter, whatever the umask.
func makeSocketDir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making the directory of the pod's LocalAPI socket: %w", podstate.Remedy(err))
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return fmt.Errorf("opening the directory of the pod's LocalAPI socket: %w", err)
	}
	return nil
}

// startLocalAPI serves the pod's LocalAPI, if it asks for one, until the function
// returned is called.
func (n *node) startLocalAPI(ctx context.Context) (stop func()) {
	if !n.record().Pod.Features.Socket {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.serveLocalAPI(ctx)
	}()
	return func() { cancel(); <-done }
}

// serveLocalAPI serves until ctx is done. It tries again until it gets a socket.
func (n *node) serveLocalAPI(ctx context.Context) {
	for pause := newBackoff(); ; {
		ln, err := listenLocalAPI(filepath.Join(n.dir, socketDir))
		if err == nil {
			err = newLocalAPI(n).serve(ctx, ln)
		}
		if ctx.Err() != nil {
			return
		}
		if n.isNews("LocalAPI") {
			n.log().Warn("the pod has no LocalAPI, trying again", "err", err)
		}
		if !tstime.Sleep(ctx, pause.next()) {
			return
		}
	}
}

// listenLocalAPI opens the socket in dir for everybody, in place of one of an earlier
// process.
func listenLocalAPI(dir string) (*net.UnixListener, error) {
	if err := makeSocketDir(dir); err != nil {
		return nil, err
	}
	// The kernel takes paths of 107 bytes, and the state directory may be anywhere.
	at, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the directory of the pod's LocalAPI socket: %w", err)
	}
	defer at.Close()
	path := fmt.Sprintf("/proc/self/fd/%d/%s", at.Fd(), socketFile)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("replacing the pod's LocalAPI socket: %w", err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("opening the pod's LocalAPI socket: %w", err)
	}
	// The descriptor in the path belongs to another file by then. The socket file that
	// stays refuses connections, which a client treats like a missing file.
	ln.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o666); err != nil {
		ln.Close()
		return nil, fmt.Errorf("making the pod's LocalAPI socket writable for its containers: %w", err)
	}
	return ln, nil
}

// These bound what one pod can make this process do. Further requests wait, in the
// kernel's queue of connections or at their turn.
const (
	apiConns   = 16
	apiRate    = 1000 // units of work a second: one is about 20 µs
	apiBurst   = 2000
	apiHeaders = 8 << 10 // bytes; Go reads 4 KiB more before it refuses
	apiQueue   = 10 * time.Second
	apiIdle    = 30 * time.Second
	apiWrite   = 20 * time.Second
)

// apiTurns bounds the cost of the answers for one caller.
type apiTurns struct {
	work  *rate.Limiter
	large chan struct{} // held for an answer of any size: one at a time
}

func newAPITurns() *apiTurns {
	return &apiTurns{work: rate.NewLimiter(apiRate, apiBurst), large: make(chan struct{}, 1)}
}

// localAPI answers requests of one pod.
type localAPI struct {
	n *node
	*apiTurns
}

func newLocalAPI(n *node) *localAPI { return &localAPI{n, newAPITurns()} }

// serve answers until ctx is done. By then it has ended all connections.
func (a *localAPI) serve(ctx context.Context, ln net.Listener) error {
	srv := &http.Server{
		Handler: a, ErrorLog: logger.StdLogger(logger.Discard), DisableGeneralOptionsHandler: true,
		BaseContext: func(net.Listener) context.Context { return ctx },
		// A request lasts no longer than its read timeout, since its context ends with
		// that (net/http, connReader.backgroundRead).
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: apiWrite,
		WriteTimeout: apiWrite, IdleTimeout: apiIdle, MaxHeaderBytes: apiHeaders,
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}, // no HTTP/2, whose settings take 1 KB
	}
	var conns sync.WaitGroup
	srv.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			conns.Add(1)
		case http.StateClosed: // its handler has ended
			conns.Done()
		}
	}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	slots := &slots{Listener: ln, ctx: ctx, work: a.work, free: make(chan struct{}, apiConns)}
	err := srv.Serve(slots)
	srv.Close()
	conns.Wait()
	return fmt.Errorf("serving the pod's LocalAPI: %w", err)
}

// slots is a listener with a bounded number of connections.
type slots struct {
	net.Listener
	ctx  context.Context
	work *rate.Limiter
	free chan struct{}
}

func (s *slots) Accept() (net.Conn, error) {
	select {
	case s.free <- struct{}{}:
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
	release := sync.OnceFunc(func() { <-s.free })
	if err := s.work.WaitN(s.ctx, costConn); err != nil {
		release()
		return nil, err
	}
	c, err := s.Listener.Accept()
	if err != nil {
		release()
		return nil, err
	}
	return &slot{c, release}, nil
}

type slot struct {
	net.Conn
	release func()
}

func (s *slot) Close() error {
	defer s.release()
	return s.Conn.Close()
}

func (a *localAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.answer(w, r, podMayCall(), a.n)
}

// answer answers a request for the node, if the caller may make it, when its turn
// comes.
func (t *apiTurns) answer(w http.ResponseWriter, r *http.Request, may callable, n *node) {
	call, refused := may.allow(r)
	if refused != nil {
		call.cost = costSmall
	}
	leave, err := t.enter(r.Context(), call)
	if err != nil {
		http.Error(w, tooMany, http.StatusTooManyRequests)
		return
	}
	defer leave()
	if refused != nil {
		http.Error(w, refused.Error(), http.StatusForbidden)
		return
	}
	s := n.runningSession()
	if s == nil {
		why := cmp.Or(n.snapshot().Reason, "starting")
		http.Error(w, "tailscale-nri: the pod's node is not up: "+why, http.StatusServiceUnavailable)
		return
	}
	switch call.path {
	case pathStatus:
		answerStatus(w, s.b, call)
		return
	case pathPrefs:
		answerPrefs(w, s.b)
		return
	}
	h := localapi.NewHandler(localapi.HandlerConfig{
		Actor: ipnauth.Self, Backend: s.b.LocalBackend, Logf: logger.Discard, EventBus: s.b.sys.Bus.Get(),
	})
	h.PermitRead = true
	h.ServeHTTP(w, call.request(r.Context()))
}

const tooMany = "tailscale-nri: too many requests for this pod's node are waiting"

// enter waits for the call's turn.
func (t *apiTurns) enter(ctx context.Context, call call) (leave func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, apiQueue)
	defer cancel()
	if err := t.work.WaitN(ctx, call.cost); err != nil {
		return nil, err
	}
	if !call.large {
		return func() {}, nil
	}
	select {
	case t.large <- struct{}{}:
		return func() { <-t.large }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// answerStatus is localapi's serveStatus without the login address, at which anybody
// could make the node their own.
func answerStatus(w http.ResponseWriter, b *backend, call call) {
	status := b.StatusWithoutPeers
	if call.query.Get("peers") != "false" {
		status = b.Status
	}
	st := status()
	st.AuthURL = ""
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "\t")
	_ = e.Encode(st) // the reader has gone
}
