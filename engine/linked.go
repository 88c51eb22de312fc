// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"time"

	"tailscale-nri/engine/internal/podnet"
)

// catchUp makes the link of a node that was resumed and has not come to it. n.op
// is held.
func (n *node) catchUp() error {
	if n.end.stopped.Load() || n.linkedSandbox() == n.rec.Pod.SandboxID {
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

// linkedSandbox is the sandbox that this process has last seen the link of.
func (n *node) linkedSandbox() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.linked
}

// openDevice opens the host end of the link.
func (n *node) openDevice(link *podnet.Link) (*podnet.Device, error) {
	device, err := link.Open(n.e.cfg.Sockets)
	if err != nil {
		return nil, err
	}
	device.OnCutRefused(func(pause time.Duration) {
		n.log().Warn("the kernel refused a segmentation-offload frame: the pod gets single packets, which is slower, until the kernel takes one again",
			"next try in", pause)
	})
	n.setDevice(device)
	return device, nil
}

func (n *node) setDevice(d *podnet.Device) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.device = d
}

// setAttachTime begins the count of the time until the node is up.
func (n *node) setAttachTime(t time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.status.AttachedAt, n.status.ReadyIn = t, 0
}

// Knows reports whether the sandbox has a node in this engine, on disk at least.
func (e *Engine) Knows(podUID, sandboxID string) bool {
	n := e.nodeOfUID(podUID)
	return n != nil && n.sandboxID() == sandboxID
}

// FeaturesOf returns what the sandbox's node has, which was settled when it was first
// attached: what the pod's annotations would be given today may be something else.
func (e *Engine) FeaturesOf(podUID, sandboxID string) (f Features, ok bool) {
	n := e.nodeOfUID(podUID)
	if n == nil {
		return f, false
	}
	s := n.brief()
	return s.Features, s.SandboxID == sandboxID
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
