// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"time"

	"tailscale.com/tstime"

	"tailscale-nri/engine/internal/podnet"
)

// forget makes the node leave the tailnet.
func (n *node) forget(sandboxID string) {
	n.op.Lock()
	defer n.op.Unlock()
	if !n.hasSandbox(sandboxID) {
		return
	}
	if n.end.mayFollow(n.rec.Retried) {
		// The pod has had another sandbox before, or has one that is still to be
		// attached. If this one is removed because it failed, the next is on its
		// way.
		n.detachLocked()
		n.end.noteRemoved(time.Now())
		n.e.spawn(func() { n.awaitEnd(sandboxID) })
		return
	}
	n.forgetLocked()
}

func (n *node) forgetLocked() {
	n.rec.Forgotten = true
	// If that cannot be written the node leaves all the same: it frees room on
	// the disk. A process that comes before it is done hears from the runtime
	// that the pod is gone.
	n.keep()
	n.switchTo(n.leave)
}

// noteListing notes what the list says, and reports whether the node was detached.
func (n *node) noteListing(l listing) (detached bool) {
	n.op.Lock()
	defer n.op.Unlock()
	n.end.list = l
	return n.end.stopped.Load()
}

// noteReached notes that the netns is there, and the record's link in it.
func (n *node) noteReached(r record) {
	n.op.Lock()
	defer n.op.Unlock()
	n.end.seen = true
	if n.rec.Link == r.Link {
		n.setLinked(true)
	}
	if !n.disk.foreign && n.rec.HostBoot != n.e.hostBoot {
		n.servedHere()
		n.keep()
	}
}

// awaitEnd forgets a sandbox that has ended unannounced, or may have, once
// that is certain. If it turns out to be alive, it is served again.
func (n *node) awaitEnd(sandboxID string) {
	if n.lookAgain(sandboxID) || !n.beginWait(sandboxID) {
		return
	}
	for tstime.Sleep(n.e.ctx, n.untilDue()) && !n.lookAgain(sandboxID) {
	}
	n.endWait(sandboxID)
}

// untilDue is how long awaitEnd waits before it looks again.
func (n *node) untilDue() time.Duration {
	n.op.Lock()
	defer n.op.Unlock()
	return n.end.untilDue(time.Now(), n.e.cfg.Grace)
}

// beginWait reports whether no goroutine waits for the sandbox's end yet, and notes that one does.
func (n *node) beginWait(sandboxID string) bool {
	n.op.Lock()
	defer n.op.Unlock()
	return n.end.beginWait(sandboxID)
}

func (n *node) endWait(sandboxID string) {
	n.op.Lock()
	defer n.op.Unlock()
	n.end.endWait(sandboxID)
}

// suspect is called when a container of the sandbox was removed. It forgets the sandbox
// if that has ended unannounced and no other follows soon: a kubelet that makes another
// sandbox removes the init containers of the old one just before.
func (n *node) suspect(sandboxID string) {
	if !n.endedUnannounced(sandboxID) || !tstime.Sleep(n.e.ctx, n.e.cfg.Grace/4) || !n.endedUnannounced(sandboxID) {
		return
	}
	n.op.Lock()
	defer n.op.Unlock()
	if n.hasSandbox(sandboxID) {
		n.forgetGone()
	}
}

// endedUnannounced reports whether the sandbox has ended and the runtime has not said
// so, or has said no more than that in its list.
func (n *node) endedUnannounced(sandboxID string) bool {
	n.op.Lock()
	defer n.op.Unlock()
	if !n.hasSandbox(sandboxID) || !n.end.mayBeUnannounced() {
		return false
	}
	return errors.Is(n.rec.NetNS.Check(), podnet.ErrGone)
}

// hasSandbox reports whether the node is that sandbox's still, and does not leave. n.op
// is held.
func (n *node) hasSandbox(sandboxID string) bool {
	return !n.disk.retired && !n.rec.Forgotten && n.rec.Pod.SandboxID == sandboxID
}

// lookAgain looks at a sandbox that may have ended, does what follows from that, and
// reports whether there is nothing left to wait for.
func (n *node) lookAgain(sandboxID string) bool {
	n.op.Lock()
	defer n.op.Unlock()
	if !n.hasSandbox(sandboxID) {
		return true
	}
	grace := n.e.cfg.Grace
	look := sight{time.Now(), n.rec.NetNS.Check(), n.rec.Retried, n.task.active()}
	switch n.end.decide(look, grace) {
	case serveAgain:
		n.switchTo(n.runAgain)
		return true
	case giveUp:
		n.forgetGone()
		return true
	case keepListed:
		n.setState(Stopped, "the runtime listed its sandbox as ended: kept for another one until "+n.end.keptUntil(grace).Format(time.TimeOnly))
	}
	return false
}

func (n *node) forgetGone() {
	n.log().Info("the pod's network namespace is gone and the runtime sent no event: removing the node", n.line()...)
	n.forgetLocked()
}

// evictNamesakes has earlier pods of this pod's name leave, and waits a little until
// their devices are deleted. A node that registers before that would get the name with a
// number at its end.
func (e *Engine) evictNamesakes(ctx context.Context, pod Pod) {
	ctx, cancel := context.WithTimeout(ctx, successionPatience)
	defer cancel()
	for _, n := range e.snapshot() {
		n.forgetIfReplaced(pod)
		if s := n.snapshot(); s.State == Leaving && s.Features.Profile == pod.Features.Profile && s.Hostname == pod.Hostname && s.UID != pod.UID {
			n.task.await(ctx)
		}
	}
}

const successionPatience = 5 * time.Second

// forgetIfReplaced forgets the node if its sandbox has ended and its pod's name is
// another pod's now: Kubernetes gives a name again only when its pod is gone.
func (n *node) forgetIfReplaced(by Pod) {
	n.op.Lock()
	defer n.op.Unlock()
	p := n.rec.Pod
	if n.disk.retired || n.rec.Forgotten || p.Namespace != by.Namespace || p.Name != by.Name || p.UID == by.UID {
		return
	}
	if !n.end.stopped.Load() && !errors.Is(n.rec.NetNS.Check(), podnet.ErrGone) {
		return
	}
	n.log().Info("another pod has this pod's name now: removing the node", n.line("by", by.UID)...)
	n.forgetLocked()
}
