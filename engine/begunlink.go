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
	link *podnet.Link
	done chan struct{} // closed when err is set
	err  error         // why the link is not whole
}

// isDone reports whether completing it has ended. One that was never begun is done.
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

// await waits until the link is whole, or returns why it is not.
func (b *begunLink) await() error {
	if b == nil {
		return nil
	}
	<-b.done
	return b.err
}

// complete completes the link. Nobody waits for it but the node's first address, and the
// pod's first container: its Attach completes the link itself, unless that is done.
func (n *node) complete(ctx context.Context, begun *begunLink) {
	if begun.isDone() {
		return
	}
	defer close(begun.done)
	podnet.AwaitGracePeriod()
	if begun.err = ctx.Err(); begun.err != nil {
		return
	}
	r := n.record()
	if _, begun.err = n.ensureLink(r); begun.err == nil {
		n.noteReached(r)
	}
}

// linkToServe returns the record's link, which it makes if it is not there. One that is
// still being completed it returns as it is, and as unfinished.
func (n *node) linkToServe(r record, begun *begunLink) (link *podnet.Link, unfinished *begunLink, err error) {
	if !begun.isDone() {
		return begun.link, begun, nil
	}
	link, err = n.ensureLink(r)
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

func (r wholeRouter) Set(cfg *router.Config) error {
	if cfg != nil && len(cfg.LocalAddrs) > 0 {
		if err := r.s.unfinished.await(); err != nil {
			select {
			case r.s.incomplete <- err:
			default:
			}
			return err
		}
	}
	return r.Router.Set(cfg)
}
