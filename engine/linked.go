// SPDX-License-Identifier: BSD-3-Clause

package engine

// catchUp makes the link of a node that was resumed and has not come to it. n.op
// is held.
func (n *node) catchUp() error {
	if n.stopped.Load() || n.attachedTo() == n.rec.Pod.SandboxID {
		return nil
	}
	_, err := n.ensureLink(n.rec)
	if err == nil {
		n.setLinked()
	}
	return err
}

// setLinked notes that the sandbox has its link. n.op is held.
func (n *node) setLinked() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.linked = n.status.SandboxID
}

// attachedTo is the sandbox that this process has last seen the link of.
func (n *node) attachedTo() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.linked
}

// setSession notes the session that serves the node, nil if none does.
func (n *node) setSession(s *session) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.session = s
}

// runningSession returns the session that serves the node, nil if none does.
func (n *node) runningSession() *session {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.session
}
