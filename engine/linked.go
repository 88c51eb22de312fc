// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"os"
	"path/filepath"
	"time"

	"tailscale-nri/engine/internal/podnet"
)

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

func (n *node) setDevice(d *podnet.Device) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.device = d
}

// attachedAt begins the count of the time until the node is up.
func (n *node) attachedAt(t time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.status.AttachedAt, n.status.ReadyIn = t, 0
}

// Knows reports whether the sandbox has a node in this engine, on disk at least.
func (e *Engine) Knows(podUID, sandboxID string) bool {
	e.mu.Lock()
	n := e.nodes[podUID]
	e.mu.Unlock()
	return n != nil && n.sandboxID() == sandboxID
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

// tidy leaves nothing on disk where there is no node whose keys could be copied:
// whoever uninstalls the program finds an empty directory.
func (e *Engine) tidy() {
	if len(e.snapshot()) == 0 {
		file := filepath.Join(e.cfg.StateDir, servedFile)
		os.Remove(file)
		os.Remove(file + ".new") // of a process that was killed: see replaceFile
	}
}
