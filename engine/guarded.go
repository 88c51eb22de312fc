// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"sync"

	"tailscale-nri/engine/internal/podnet"
)

// guarded holds the parts of a node's pod that are restored when somebody else changes
// them: its link, its fence, and what its router has put into the pod.
type guarded struct {
	// linking is held while the link is made, completed or restored.
	linking sync.Mutex

	mu     sync.Mutex
	link   *podnet.Link   // nil before the first; guarded by mu
	fence  *podnet.Router // of the link, which holds before the first session and between two; guarded by mu
	router *podnet.Router // of the last session, nil before the first; guarded by mu

	changed chan struct{} // of one: something was changed, or is to be looked at again
}

func newGuarded() guarded { return guarded{changed: make(chan struct{}, 1)} }

// setLink has the link guarded, and its fence if it has one.
func (g *guarded) setLink(l *podnet.Link, fence *podnet.Router) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.link, g.fence = l, fence
}

func (g *guarded) setRouter(r *podnet.Router) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.router = r
}

// currentFence is the link's, nil if it has none.
func (g *guarded) currentFence() *podnet.Router {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.fence
}

// fenceOf is the fence of a link, nil if that has none yet.
func (g *guarded) fenceOf(l *podnet.Link) *podnet.Router {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.link == nil || !g.link.Is(l) {
		return nil
	}
	return g.fence
}

// currentRouter is the last session's, nil before the first.
func (g *guarded) currentRouter() *podnet.Router {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.router
}

// note is told by the watch what has happened to the link.
func (g *guarded) note(c podnet.Change) {
	g.mu.Lock()
	router, fence := g.router, g.fence
	g.mu.Unlock()
	if router.MayAffect(c) || fence.MayAffect(c) {
		g.wake()
	}
}

// wake has the guard look.
func (g *guarded) wake() {
	select {
	case g.changed <- struct{}{}:
	default:
	}
}

// drain forgets what the guard was told: it is about to look.
func (g *guarded) drain() {
	select {
	case <-g.changed:
	default:
	}
}

// restoreFence restores what keeps traffic from leaving past an exit node.
func (g *guarded) restoreFence() (missing []string, err error) {
	if fence := g.currentFence(); fence != nil {
		return fence.Fence()
	}
	return nil, nil
}

// restoreLink returns the router of the link that it has restored, nil if there is
// none.
func (g *guarded) restoreLink() (router *podnet.Router, missing []string, err error) {
	g.linking.Lock()
	defer g.linking.Unlock()
	g.mu.Lock()
	link, router := g.link, g.router
	g.mu.Unlock()
	if link == nil {
		return nil, nil, nil
	}
	missing, err = link.Restore()
	return router, missing, err
}
