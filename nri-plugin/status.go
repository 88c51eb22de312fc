// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tailscale.com/tstime"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/buildinfo"
	"tailscale-nri/nri-plugin/internal/errtext"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/status"
)

// What a statusServer answers beyond cmdReady, cmdLive and askRuntime.
const (
	askStatus = "v1/status" // a status.Report
	// Of commands of earlier versions: the nodes as the engine has them, and a line
	// for each pod that runs without one and should not.
	askOldStatus   = "status"
	askOldWarnings = "warnings"
)

// statusServer answers on a unix socket: GET /v1/status with a [status.Report],
// GET /runtime with a runtimeInfo, GET /ready and GET /live with 200 or 503 and a
// line that says why, and /v1/pods/ as [engine.Engine.PodAPI] does.
type statusServer struct {
	health *health
	host   string // the Kubernetes node
	ln     net.Listener
}

// listenStatus opens the status socket, for root alone. A socket that an
// earlier process left behind is replaced; one that somebody answers on means
// that a second process would serve the same pods, so that is an error.
func listenStatus(ctx context.Context, path string) (net.Listener, error) {
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

// removeDeadSocket removes a socket that nobody answers on, and nothing else.
//
// A process that was killed takes connections until the kernel has come to
// that socket, but answers none: it is waited for.
func removeDeadSocket(ctx context.Context, path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("looking at the status socket: %w", err)
	case fi.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is %q: that is no socket but something else: give it a path of its own", settings.StatusSocket, path)
	}
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	for {
		_, _, err := ask(ctx, path, cmdReady)
		switch {
		case absent(err):
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
func (s *statusServer) Run(ctx context.Context) error {
	mux := http.NewServeMux()
	s.register(mux)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	if err := srv.Serve(s.ln); ctx.Err() == nil {
		return fmt.Errorf("serving the status: %w", err)
	}
	return nil
}

// register has the mux answer what this process says of itself.
func (s *statusServer) register(mux *http.ServeMux) {
	mux.HandleFunc("GET /"+askStatus, func(w http.ResponseWriter, r *http.Request) {
		answerJSON(w, s.report(r.Context()))
	})
	mux.HandleFunc("GET /"+askRuntime, func(w http.ResponseWriter, _ *http.Request) {
		answerJSON(w, s.health.registeredWith())
	})
	mux.HandleFunc("GET /"+cmdReady, func(w http.ResponseWriter, _ *http.Request) {
		ok, text := s.health.ready()
		answerProbe(w, ok, text)
	})
	mux.HandleFunc("GET /"+cmdLive, func(w http.ResponseWriter, r *http.Request) {
		if err := s.health.live(r.Context()); err != nil {
			answerProbe(w, false, "not live: "+errtext.OneLine(err))
			return
		}
		answerProbe(w, true, "live")
	})
	s.health.podAPI.register(mux, s.health.ready)
	mux.HandleFunc("GET /"+askOldStatus, func(w http.ResponseWriter, r *http.Request) {
		nodes, err := s.health.nodes(r.Context())
		if err != nil {
			return // nobody waits any more
		}
		answerJSON(w, append([]engine.NodeStatus{}, nodes...)) // "[]" and not "null"
	})
	mux.HandleFunc("GET /"+askOldWarnings, func(w http.ResponseWriter, _ *http.Request) {
		answerProbe(w, true, strings.Join(warningLines(s.health.withoutNode()), "\n"))
	})
}

func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	// An error here is the reader's who went away.
	_ = json.NewEncoder(w).Encode(v)
}

// statusPatience is how long a process may take to say its status.
const statusPatience = 10 * time.Second

// askReport asks the process on socket for its report. Its error is for somebody who
// is to be told what to do.
func askReport(ctx context.Context, socket string) (status.Report, error) {
	code, body, err := fetch(ctx, socket, askStatus)
	switch {
	case err != nil:
		return status.Report{}, err
	case code == http.StatusNotFound:
		return status.Report{}, fmt.Errorf("the process on %s is of an earlier version than this command (%s), and has no /%s: "+
			"use the command of its own version, in its pod, or ask again once it has been replaced", socket, buildinfo.Version(), askStatus)
	case code != http.StatusOK:
		return status.Report{}, fmt.Errorf("asking for /%s on %s: it answered %d: %s", askStatus, socket, code, body)
	}
	return status.Decode(body)
}

// fetch is ask for somebody who is to be told what to do about an error.
func fetch(ctx context.Context, socket, what string) (code int, body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	code, body, err = ask(ctx, socket, what)
	switch {
	case absent(err):
		err = fmt.Errorf("no process answers on %s: start one, or set %s to its socket", socket, settings.StatusSocket)
	case err != nil:
		err = fmt.Errorf("asking for /%s on %s: %w", what, socket, err)
	}
	return code, body, err
}

// ask asks the process on socket for one of the things that a statusServer
// answers.
func ask(ctx context.Context, socket, what string) (code int, body []byte, err error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://tailscale-nri/"+what, nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}
