// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"net/netip"
	"slices"
)

// DeleteSilently removes a device as Headscale (0.29.0) does: its peers and the API
// no longer have it, its own poll goes on as if nothing had happened, and only its
// next request is answered with 404 "node not found".
func (s *Server) DeleteSilently(id string) error {
	return s.change(id, "delete without telling it", func(n *node) {
		t := s.nodes
		delete(t.byID, n.ID)
		delete(t.byKey, n.Key)
		for st := range t.streams {
			if st.node != n {
				st.pending[n.ID] = struct{}{}
				st.poke()
			}
		}
		close(t.news)
		t.news = make(chan struct{})
	})
}

// SetEndpoints has the peers told of other endpoints of a device than it has
// published, until it publishes some again.
func (s *Server) SetEndpoints(id string, endpoints ...netip.AddrPort) error {
	return s.change(id, "move", func(n *node) {
		n.Endpoints = slices.Clone(endpoints)
		s.nodes.changedLocked(n)
	})
}
