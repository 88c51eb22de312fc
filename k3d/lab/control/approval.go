// SPDX-License-Identifier: BSD-3-Clause

package control

// SetApproved approves a device, or takes that back, as an admin does in a
// tailnet with device approval: the node is told in its netmap
// (tailcfg.Node.MachineAuthorized), and uses no peer until it is approved.
func (s *Server) SetApproved(id string, approved bool) error {
	return s.change(id, "approve", func(n *node) {
		n.MachineAuthorized = approved
		n.whole++
		s.nodes.changedLocked(n)
	})
}
