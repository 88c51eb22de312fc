// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"

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

// complete completes the link. The pod's first container does not wait for that: its
// Attach completes the link itself, unless that is done.
func (n *node) complete(ctx context.Context, begun *begunLink) {
	if begun.isDone() {
		return
	}
	defer close(begun.done)
	podnet.AwaitGracePeriod()
	if ctx.Err() != nil {
		return
	}
	if err := n.haveWhole(begun.sandboxID); err != nil {
		n.cannotRestore(&pace{}, err)
		n.wakeGuard()
	}
}

// haveWhole completes the link of the sandbox, unless it is whole or the pod has another
// sandbox.
func (n *node) haveWhole(sandboxID string) error {
	r := n.record()
	if r.Pod.SandboxID != sandboxID || n.linkedSandbox() == sandboxID {
		return nil
	}
	_, err := n.completeLink(r)
	if err == nil {
		n.noteReached(r)
	}
	return err
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

// wholeRouter gives ts0 its addresses once the link is whole.
type wholeRouter struct {
	router.Router
	s *session
}

// Set implements [router.Router]. It is called with locks of the backend held, and takes
// node.op.
func (r wholeRouter) Set(cfg *router.Config) error {
	begun := r.s.begun
	if begun == nil || cfg == nil || len(cfg.LocalAddrs) == 0 {
		return r.Router.Set(cfg)
	}
	<-begun.done
	if err := r.s.n.haveWhole(begun.sandboxID); err != nil {
		select {
		case r.s.notWhole <- err:
		default:
		}
		return err
	}
	return r.Router.Set(cfg)
}
