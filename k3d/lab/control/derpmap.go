// SPDX-License-Identifier: BSD-3-Clause

package control

import "tailscale.com/tailcfg"

// DERPMap names the tailnet's DERP and STUN server, for another control plane
// that has none.
func (s *Server) DERPMap() *tailcfg.DERPMap { return s.derpMap.Clone() }
