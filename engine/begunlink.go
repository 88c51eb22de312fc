// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"

	"tailscale.com/wgengine/router"

	"tailscale-nri/engine/internal/podnet"
)

// begunLink is the link of a pod that was empty when it was attached, as
// [podnet.Begin] has made it. Its node starts on it while the guard completes it.
type begunLink struct {
	*podnet.Link
	sandboxID string
	done      chan struct{} // closed once the guard has tried to complete it
}

// isDone reports whether the guard has tried. A link that was never begun is done.
func (b *begunLink) isDone() bool {
	if b == nil {
		return true
	}
	select {
	case <-b.done:
		return true
	default:
		return false
	}
}

// complete completes the link of the node's sandbox. The pod's first container does not
// wait for that: its Attach completes the link itself, unless that is done. What fails
// here is for the guard to restore.
func (n *node) complete(ctx context.Context, begun *begunLink) {
	if begun.isDone() {
		return
	}
	defer close(begun.done)
	podnet.AwaitGracePeriod()
	r := n.record()
	if ctx.Err() != nil || r.Pod.SandboxID != begun.sandboxID || n.linkedSandbox() == begun.sandboxID {
		return
	}
	_, err := n.completeLink(r)
	switch {
	case err == nil:
		n.noteReached(r)
	case ctx.Err() == nil && !errors.Is(err, podnet.ErrGone): // the session notices that
		n.cannotRestore(&pace{}, err)
		n.wakeGuard()
	}
}

// linkToServe returns the link, made if it is missing. A link that is still being
// completed is returned as it is, with its begunLink.
func (n *node) linkToServe(r record, begun *begunLink) (*podnet.Link, *begunLink, error) {
	if !begun.isDone() {
		return begun.Link, begun, nil
	}
	link, err := n.ensureLink(r)
	if err == nil {
		n.noteReached(r)
	}
	return link, nil, err
}

// patientRouter gives ts0 its addresses once the guard has tried to complete the link. If
// it could not, the node is not up, whatever addresses it has.
type patientRouter struct {
	router.Router
	begun *begunLink // nil if there is nothing to wait for
}

func (r patientRouter) Set(cfg *router.Config) error {
	if r.begun != nil && cfg != nil && len(cfg.LocalAddrs) > 0 {
		<-r.begun.done
	}
	return r.Router.Set(cfg)
}
