// SPDX-License-Identifier: BSD-3-Clause

package statussocket

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tailscale.com/tstime"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/errtext"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/status"
)

// What commands of earlier versions ask for: the nodes as the engine has them, and a
// line for each pod that runs without one and should not.
const (
	askOldStatus   = "status"
	askOldWarnings = "warnings"
)

// Server answers on a unix socket: GET /v1/status with a [status.Report],
// GET /runtime with a RuntimeInfo, GET /ready and GET /live with 200 or 503 and a
// line that says why, and /v1/pods/ as [engine.Engine.PodAPI] does.
type Server struct {
	Health   *Health
	Host     string // the Kubernetes node
	Listener net.Listener
}

// Listen opens the status socket, for root alone. A socket that an
// earlier process left behind is replaced; one on which a process answers means
// that a second process would serve the same pods, so that is an error.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("creating the directory of %s: %w", settings.StatusSocket, err)
	}
	if err := removeDeadSocket(ctx, path); err != nil {
		return nil, err
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("opening the status socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, fmt.Errorf("protecting the status socket: %w", err)
	}
	return ln, nil
}

// removeDeadSocket removes a socket on which no process answers, and nothing else.
//
// A process that was killed takes connections until the kernel has come to
// that socket, but answers none: it is waited for.
func removeDeadSocket(ctx context.Context, path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("checking for an earlier status socket: %w", err)
	case fi.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is %q: that exists and is not a socket: choose another path", settings.StatusSocket, path)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		_, _, err := Ask(ctx, path, AskReady)
		switch {
		case NobodyListens(err):
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("replacing the status socket: %w", err)
			}
			return nil
		case err == nil || ctx.Err() != nil:
			return fmt.Errorf("another tailscale-nri answers on %s: end it first", path)
		}
		tstime.Sleep(ctx, 5*time.Millisecond)
	}
}

// Run serves until ctx is done, then removes the socket and returns nil.
func (s *Server) Run(ctx context.Context) error {
	mux := http.NewServeMux()
	s.register(mux)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	if err := srv.Serve(s.Listener); ctx.Err() == nil {
		return fmt.Errorf("serving the status: %w", err)
	}
	return nil
}

// register has the mux answer what this process says of itself.
func (s *Server) register(mux *http.ServeMux) {
	mux.HandleFunc("GET /"+askStatus, func(w http.ResponseWriter, r *http.Request) {
		answerJSON(w, s.report(r.Context()))
	})
	mux.HandleFunc("GET /"+AskRuntime, func(w http.ResponseWriter, _ *http.Request) {
		answerJSON(w, s.Health.RegisteredWith())
	})
	mux.HandleFunc("GET /"+AskReady, func(w http.ResponseWriter, _ *http.Request) {
		ok, text := s.Health.Ready()
		answerProbe(w, ok, text)
	})
	mux.HandleFunc("GET /"+askLive, func(w http.ResponseWriter, r *http.Request) {
		if err := s.Health.live(r.Context()); err != nil {
			answerProbe(w, false, "not live: "+errtext.OneLine(err))
			return
		}
		answerProbe(w, true, "live")
	})
	s.Health.PodAPI.register(mux, s.Health.Ready)
	mux.HandleFunc("GET /"+askOldStatus, func(w http.ResponseWriter, r *http.Request) {
		nodes, err := s.Health.nodes(r.Context())
		if err != nil {
			return // the request has ended
		}
		answerJSON(w, append([]engine.NodeStatus{}, nodes...)) // "[]" and not "null"
	})
	mux.HandleFunc("GET /"+askOldWarnings, func(w http.ResponseWriter, _ *http.Request) {
		answerProbe(w, true, strings.Join(WarningLines(s.Health.WithoutNode()), "\n"))
	})
}

func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	// An error here means that the reader is gone.
	_ = json.NewEncoder(w).Encode(v)
}

// WarningLines has a line for each of the pods.
func WarningLines(nodes []status.Node) (lines []string) {
	for _, n := range nodes {
		lines = append(lines, n.Namespace+"/"+n.Pod+" "+n.Reason)
	}
	return lines
}
