// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"time"

	"tailscale-nri/engine/internal/podnet"
)

// forget makes the node leave the tailnet.
func (n *node) forget(sandboxID string) {
	n.op.Lock()
	defer n.op.Unlock()
	if n.retired || n.rec.Pod.SandboxID != sandboxID || n.rec.Forgotten {
		return
	}
	if n.rec.Retried || n.list == listedAnew {
		// The pod has had another sandbox before, or has one that is still to be
		// attached. If this one is removed because it failed, the next is on its
		// way.
		n.detachLocked()
		n.removed, n.goneSince = true, time.Now()
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

// listing is what the runtime said of the node's sandbox when it last listed
// all.
type listing int

const (
	unknown listing = iota
	listedLive
	listedEnded
	listedAnew // with another sandbox, which has not been attached yet
	notListed
)

// noteListing notes what the list says, and reports whether the node was detached.
func (n *node) noteListing(l listing) (detached bool) {
	n.op.Lock()
	defer n.op.Unlock()
	n.list = l
	return n.stopped.Load()
}

// noteReached notes that the netns is there, and the record's link in it.
func (n *node) noteReached(r record) {
	n.op.Lock()
	defer n.op.Unlock()
	n.seen = true
	if n.rec.Link == r.Link {
		n.setLinked()
	}
	if !n.foreign && n.rec.Machine != n.e.machine {
		n.servedHere()
		n.keep()
	}
}

// awaitEnd forgets a sandbox that has ended without a word, or may have, once
// that is certain. If it turns out to be alive, it is served again.
func (n *node) awaitEnd(sandboxID string) {
	if n.lookAgain(sandboxID) || !n.beginWait(sandboxID) {
		return
	}
	for sleep(n.e.ctx, n.untilDue()) && !n.lookAgain(sandboxID) {
	}
	n.endWait(sandboxID)
}

// untilDue is the grace period, or what is left of it: the runtime may have
// removed the sandbox while its end was waited for already.
func (n *node) untilDue() time.Duration {
	n.op.Lock()
	defer n.op.Unlock()
	grace := n.e.cfg.Grace
	if left := grace - time.Since(n.goneSince); !n.goneSince.IsZero() && left > 0 {
		return left
	}
	return grace
}

// beginWait reports whether nobody waits for the sandbox's end yet.
func (n *node) beginWait(sandboxID string) bool {
	n.op.Lock()
	defer n.op.Unlock()
	first := n.awaited != sandboxID
	n.awaited = sandboxID
	return first
}

func (n *node) endWait(sandboxID string) {
	n.op.Lock()
	defer n.op.Unlock()
	if n.awaited == sandboxID {
		n.awaited = ""
	}
}

// suspect forgets the sandbox, of which a container was removed, if it has ended
// without a word and gets no successor soon: a kubelet that makes a sandbox
// anew removes the init containers of the old one just before.
func (n *node) suspect(sandboxID string) {
	if !n.endedUnannounced(sandboxID) || !sleep(n.e.ctx, n.e.cfg.Grace/4) || !n.endedUnannounced(sandboxID) {
		return
	}
	n.op.Lock()
	defer n.op.Unlock()
	if !n.rec.Forgotten && n.rec.Pod.SandboxID == sandboxID && !n.retired {
		n.forgetGone()
	}
}

// endedUnannounced reports whether the sandbox has ended and the runtime has not said
// so, or has said no more than that in its list.
func (n *node) endedUnannounced(sandboxID string) bool {
	n.op.Lock()
	defer n.op.Unlock()
	switch {
	case n.retired || n.rec.Forgotten || n.rec.Pod.SandboxID != sandboxID:
		return false
	case n.list == listedAnew, n.stopped.Load() && n.list != listedEnded:
		return false
	}
	return errors.Is(n.rec.NetNS.Check(), podnet.ErrGone)
}

// listedGraces is how many grace periods a pod has whose sandbox the runtime
// lists as ended.
const listedGraces = 10

// lookAgain reports whether there is nothing left to wait for.
func (n *node) lookAgain(sandboxID string) bool {
	n.op.Lock()
	defer n.op.Unlock()
	if n.retired || n.rec.Forgotten || n.rec.Pod.SandboxID != sandboxID {
		return true
	}
	err := n.rec.NetNS.Check()
	if !errors.Is(err, podnet.ErrGone) && !n.removed {
		n.goneSince = time.Time{}
		if err != nil || n.task.active() || n.stopped.Load() || n.list == notListed || n.list == listedEnded {
			return false
		}
		n.switchTo(n.run)
		return true
	}
	if n.goneSince.IsZero() {
		n.goneSince = time.Now()
	}
	if !n.mayForget(time.Since(n.goneSince)) {
		if n.list == listedEnded {
			until := n.goneSince.Add(listedGraces * n.e.cfg.Grace).Format(time.TimeOnly)
			n.setState(Stopped, "the runtime listed its sandbox as ended: kept for another one until "+until)
		}
		return false
	}
	n.forgetGone()
	return true
}

func (n *node) forgetGone() {
	n.log().Info("the pod's network namespace is gone and the runtime sent no event: removing the node", n.line()...)
	n.forgetLocked()
}

// mayForget reports whether a netns that cannot be found is reason enough to
// give the identity up, which cannot be had back. The runtime's word settles
// it: a sandbox that it no longer lists has been removed, one that it lists as
// ended may get a successor. One that it lists as live is out of our sight, not
// gone, unless this process has seen it before.
func (n *node) mayForget(waited time.Duration) bool {
	grace := n.e.cfg.Grace
	switch {
	case n.list == listedAnew:
		return false
	case n.list == notListed && !n.removed && !n.rec.Retried:
		return true
	case n.list == listedEnded && !n.removed:
		return waited >= listedGraces*grace
	}
	return waited >= grace && (n.seen || n.removed || n.list == notListed)
}

// evictNamesakes makes the pods leave whose name the pod has now, and waits a little
// for their devices to be gone: a node that registers meanwhile would get the
// name with a number at its end.
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
// another pod's now: Kubernetes gives a name anew only when its pod is gone.
func (n *node) forgetIfReplaced(by Pod) {
	n.op.Lock()
	defer n.op.Unlock()
	p := n.rec.Pod
	if n.retired || n.rec.Forgotten || p.Namespace != by.Namespace || p.Name != by.Name || p.UID == by.UID {
		return
	}
	if !n.stopped.Load() && !errors.Is(n.rec.NetNS.Check(), podnet.ErrGone) {
		return
	}
	n.log().Info("another pod has this pod's name now: removing the node", n.line("by", by.UID)...)
	n.forgetLocked()
}
