// SPDX-License-Identifier: BSD-3-Clause

//go:build profile

package main

import (
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
)

// This file is in no build but that of `make profile`, for the benchmark: each process serves its profiles on a socket
// named after it, for root alone. It starts in init so that the program proper knows nothing of it.
func init() {
	if err := serveProfiles(fmt.Sprintf("/run/tailscale-nri/profile-%d.sock", os.Getpid())); err != nil {
		fmt.Fprintln(os.Stderr, "tailscale-nri: serving profiles:", err)
	}
}

func serveProfiles(socket string) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return err
	}
	_ = os.Remove(socket) // of an earlier process of this number
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	go func() { _ = http.Serve(listener, mux) }() // until the process ends
	return nil
}
