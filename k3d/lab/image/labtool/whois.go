// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"

	"tailscale.com/client/local"
)

// caller is what whois says of the node that asks.
type caller struct {
	ID    string         `json:"id"`   // stable ID
	Name  string         `json:"name"` // with the tailnet's domain
	Addrs []netip.Prefix `json:"addrs"`
	Tags  []string       `json:"tags"`
	User  string         `json:"user"`
}

// whois answers each request with who is calling, as an app in a pod learns it from the pod's own node: through the
// socket in its usual place, with Tailscale's client for Go, which is left as it comes.
func whois(ctx context.Context, opt options, addr string) error {
	return whoisBy(ctx, opt, addr, new(local.Client))
}

func whoisBy(ctx context.Context, opt options, addr string, client *local.Client) error {
	server := &http.Server{Addr: addr, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, err := client.WhoIs(r.Context(), r.RemoteAddr)
		switch {
		case errors.Is(err, local.ErrPeerNotFound):
			http.Error(w, err.Error(), http.StatusForbidden)
		case err != nil:
			http.Error(w, err.Error(), http.StatusBadGateway)
		default:
			json.NewEncoder(w).Encode(caller{
				string(who.Node.StableID), who.Node.Name, who.Node.Addresses, who.Node.Tags, who.UserProfile.LoginName,
			})
		}
	})}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	fmt.Fprintln(opt.out, "serving whois on", addr)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
