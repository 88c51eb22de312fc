// SPDX-License-Identifier: BSD-3-Clause

package statussocket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"

	"tailscale-nri/nri-plugin/internal/buildinfo"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/status"
)

// What a process answers to, and AskRuntime.
const (
	AskReady  = "ready"
	askLive   = "live"
	askStatus = "v1/status" // a status.Report
)

// patience is how long a process may take to say its status.
const patience = 10 * time.Second

// AskReport asks the process on socket for its report. Its error tells the user
// what to do.
func AskReport(ctx context.Context, socket string) (status.Report, error) {
	code, body, err := Fetch(ctx, socket, askStatus)
	switch {
	case err != nil:
		return status.Report{}, err
	case code == http.StatusNotFound:
		return status.Report{}, fmt.Errorf("the process on %s is older than this command (%s), and has no /%s: "+
			"use the command of its own version, in its pod, or ask again once it has been replaced", socket, buildinfo.Version(), askStatus)
	case code != http.StatusOK:
		return status.Report{}, fmt.Errorf("asking for /%s on %s: it answered %d: %s", askStatus, socket, code, body)
	}
	return status.Decode(body)
}

// Fetch is Ask with errors that tell the user what to do.
func Fetch(ctx context.Context, socket, what string) (code int, body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	code, body, err = Ask(ctx, socket, what)
	switch {
	case NobodyListens(err):
		err = fmt.Errorf("no process answers on %s: start one, or set %s to its socket", socket, settings.StatusSocket)
	case err != nil:
		err = fmt.Errorf("asking for /%s on %s: %w", what, socket, err)
	}
	return code, body, err
}

// Ask asks the process on socket for one of the things that a Server
// answers.
func Ask(ctx context.Context, socket, what string) (code int, body []byte, err error) {
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

// CannotAsk is the error of a command that could not ask, and of a doctor that could
// not look: it ends with 2.
type CannotAsk struct{ Err error }

// Error implements error.
func (e CannotAsk) Error() string { return e.Err.Error() }

// Unwrap returns the reason.
func (e CannotAsk) Unwrap() error { return e.Err }

// AskRuntime is the request for the runtime.
const AskRuntime = "runtime"

// RuntimeInfo describes the runtime that the plugin is registered with.
type RuntimeInfo struct {
	Name                string        `json:"name"`
	Version             string        `json:"version"`
	RunsThisPod         bool          `json:"runsThisPod"` // it has listed the pod of POD_UID; false where that is not set
	RegistrationTimeout time.Duration `json:"registrationTimeout"`
	RequestTimeout      time.Duration `json:"requestTimeout"`
}

// NobodyListens reports whether err means that no process listens on a unix socket.
func NobodyListens(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}
