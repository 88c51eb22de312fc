// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"fmt"
	"net/http"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// What follows is Config.Headscale: where Headscale decides otherwise than
// Tailscale. What nodes meet was seen with 0.29.0, of which tests run the real
// one (k3d/lab/headscale). What the API answers was seen with a snapshot of July
// 2026, the 0.30 to be: no earlier version has this API.
//
//   - A new node that requests tags with an auth key is refused, whatever the
//     key's tags. A node of a machine that is known already is not asked.
//   - A tagged node that logs in again keeps its tags and its expiry: once it is
//     logged out or expired, it stays so, with whatever key it comes.
//   - A node is not told of its own deletion: its poll goes on, and its next
//     request gets 404.
//   - A device's ID in the API and in netmaps is one decimal number. The API shows
//     no tailnet lock key, and not whether a device is connected.
//   - The API's errors have the form of RFC 9457 (once RFC 7807).
//
// What is the same needs no option: a log-out sets the expiry of a node, and
// deletes an ephemeral one; a name that is taken gets a number, and keeps it.

// useKey lets a node in by its auth key, or says why not.
func (s *Server) useKey(req *tailcfg.RegisterRequest, machine key.MachinePublic) (AuthKey, error) {
	tags := req.Hostinfo.RequestTags
	if s.cfg.Headscale {
		if len(tags) > 0 && !s.nodes.knows(machine) {
			return AuthKey{}, fmt.Errorf("requested tags %v are invalid or not permitted", tags)
		}
		tags = nil
	}
	return s.keys.use(req.Auth.AuthKey, req.NodeKey, tags)
}

// knows reports whether there is a node of the machine.
func (t *table) knows(machine key.MachinePublic) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byMachineLocked(machine) != nil
}

// deviceAnswer is a device as this tailnet's API shows it.
func (s *Server) deviceAnswer(d Device) deviceAnswer {
	out := d.answer()
	if s.cfg.Headscale {
		out.LockKey, out.Online = "", nil
	}
	return out
}

// problemWriter is a ResponseWriter whose API answers errors as RFC 9457 has it.
type problemWriter struct{ http.ResponseWriter }

func (w problemWriter) problem(status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	writeBody(w.ResponseWriter, map[string]any{"title": http.StatusText(status), "status": status, "detail": detail})
}

// inManner has the API's errors in the tailnet's form.
func (s *Server) inManner(next http.Handler) http.Handler {
	if !s.cfg.Headscale {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(problemWriter{w}, r)
	})
}
