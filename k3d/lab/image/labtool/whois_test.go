// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"tailscale.com/client/local"
	"tailscale.com/client/tailscale/apitype"
	"tailscale.com/tailcfg"
)

// TestWhois: what the LocalAPI says of the caller's address, a caller that it does not know, and no LocalAPI at all.
func TestWhois(t *testing.T) {
	client := &local.Client{Socket: filepath.Join(t.TempDir(), "tailscaled.sock"), UseSocketOnly: true}
	addr := freeAddr(t, "127.0.0.1")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- whoisBy(ctx, options{out: io.Discard}, addr, client) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	awaitListener(t, addr)
	page := func() (string, error) { return asking(t, options{}, "get", "http://"+addr+"/") }

	if out, err := page(); err == nil || !strings.Contains(err.Error(), "502") {
		t.Errorf("without a LocalAPI: %q, %v", out, err)
	}
	socket, err := net.Listen("unix", client.Socket)
	if err != nil {
		t.Fatal(err)
	}
	var known atomic.Bool
	known.Store(true)
	go http.Serve(socket, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked, _, err := net.SplitHostPort(r.FormValue("addr"))
		if !known.Load() || r.URL.Path != "/localapi/v0/whois" || err != nil || asked != "127.0.0.1" {
			http.Error(w, "no match for IP:port", http.StatusNotFound)
			return
		}
		json.NewEncoder(w).Encode(apitype.WhoIsResponse{
			Node:        &tailcfg.Node{StableID: "n1", Name: "web.example.ts.net.", Tags: []string{"tag:k8s-pod"}},
			UserProfile: &tailcfg.UserProfile{LoginName: "tagged-devices"},
		})
	}))
	defer socket.Close()
	out, err := page()
	if want := `{"id":"n1","name":"web.example.ts.net.","addrs":null,"tags":["tag:k8s-pod"],"user":"tagged-devices"}`; err != nil || strings.TrimSpace(out) != want {
		t.Errorf("%q, %v; want %q", out, err, want)
	}
	known.Store(false)
	if out, err := page(); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("nobody's address: %q, %v", out, err)
	}
}
