// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"sync"
	"sync/atomic"
	"time"

	"tailscale-nri/engine/internal/podnet"
)

// serving is what this process has opened to serve a node, and what it has found out by
// serving it.
type serving struct {
	guarded guarded       // has a lock of its own
	looks   chan struct{} // apiTurns.large of root's looks into the node

	// returned is called once this process serves the node again, nil for a new one.
	returned atomic.Pointer[func()]

	mu      sync.Mutex     // guards what follows; held across nothing
	session *session       // nil if none serves the node
	device  *podnet.Device // the last one, open or not; nil before the first
	bare    bool           // the link has had no address yet
	noTags  bool           // the login server takes no requested tags
}

// newServing returns the serving of a node that is not served yet; bare says that it is new.
func newServing(bare bool) serving {
	return serving{guarded: newGuarded(), looks: make(chan struct{}, 1), bare: bare}
}

// setSession notes the session that serves the node, nil if none does.
func (s *serving) setSession(session *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.session = session
}

// current returns the session that serves the node, nil if none does, and the device of
// the last one.
func (s *serving) current() (*session, *podnet.Device) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.session, s.device
}

func (s *serving) setDevice(d *podnet.Device) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.device = d
}

// setBare notes whether the link is known to have no address, and returns what was
// known before.
func (s *serving) setBare(is bool) (was bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bare, was = is, s.bare
	return was
}

// dropTags has the node request no tags from now on, and reports whether it did.
func (s *serving) dropTags() (requested bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	requested = !s.noTags
	s.noTags = true
	return requested
}

// requestsTags reports whether the node requests tags.
func (s *serving) requestsTags() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.noTags
}

// hasReturned notes that others need not wait for the node any more: it forwards,
// or has failed to.
func (s *serving) hasReturned() {
	if end := s.returned.Load(); end != nil {
		(*end)()
	}
}

// runningSession returns the session that serves the node, nil if none does.
func (n *node) runningSession() *session {
	s, _ := n.serving.current()
	return s
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
	n.serving.setDevice(device)
	return device, nil
}
