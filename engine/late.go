// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"errors"
	"slices"
	"time"

	"tailscale.com/tstime"

	"tailscale-nri/engine/internal/podnet"
)

// late are the pods that run already and are to be attached: there is nobody
// to return an error to, so it is tried until it works. The engine's mutex
// guards it.
type late struct {
	round   int                   // of Sync: a later one knows better
	refused map[string]NodeStatus // by UID
}

func (e *Engine) nextRound() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.late.round++
	clear(e.late.refused)
	return e.late.round
}

// attachAll attaches the pods one after the other, since it is a few
// milliseconds each, and the first to be served is served soonest. It tries those that
// failed again, until the next round. After a restart nearly all of them
// are nodes that are about to be served, links and all: they go first.
func (e *Engine) attachAll(pods []Pod, round int) {
	e.returning.wait(e.ctx, returnPatience)
	for pause := newBackoff(); ; {
		pods = slices.DeleteFunc(pods, func(pod Pod) bool { return e.attachLate(pod, round) })
		if len(pods) == 0 || !tstime.Sleep(e.ctx, pause.next()) {
			return
		}
	}
}

// attachLate reports whether there is nothing left to do for the pod.
func (e *Engine) attachLate(pod Pod, round int) bool {
	if e.outdated(pod, round) {
		return true
	}
	created, err := e.Attach(e.ctx, pod)
	if created {
		e.tally.late.Add(1)
	}
	log := e.log.With("pod", pod.Namespace+"/"+pod.Name, "uid", pod.UID, "sandbox", shortID(pod.SandboxID))
	switch {
	case err == nil || e.ctx.Err() != nil:
		return true
	case errors.Is(err, podnet.ErrGone):
		log.Debug("the pod ended before it was attached")
		e.clearLate(pod.UID)
		return true
	}
	if e.noteRefusal(pod, round, err.Error()) {
		log.Error("a running pod cannot get its node yet, trying again", "err", err)
	}
	return false
}

// outdated reports whether another round, or another sandbox of the pod, has
// made the attempt unnecessary.
func (e *Engine) outdated(pod Pod, round int) bool {
	e.mu.Lock()
	n, over := e.nodes[pod.UID], e.late.round != round
	e.mu.Unlock()
	return over || n != nil && n.hasNewerSandbox(pod.SandboxID)
}

// hasNewerSandbox reports whether the node has another sandbox, which came after
// the runtime's last list.
func (n *node) hasNewerSandbox(sandboxID string) bool {
	n.op.Lock()
	defer n.op.Unlock()
	return n.end.list == unknown && n.task.active() && n.rec.Pod.SandboxID != sandboxID
}

// noteRefusal notes why a pod could not be attached, and reports whether that is
// news.
func (e *Engine) noteRefusal(pod Pod, round int, why string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	was, again := e.late.refused[pod.UID]
	if e.late.round != round || again && was.Reason == why {
		return false
	}
	since := time.Now()
	if again {
		since = was.Since
	}
	e.late.refused[pod.UID] = NodeStatus{
		SandboxID: pod.SandboxID, UID: pod.UID, Namespace: pod.Namespace, Pod: pod.Name, Hostname: pod.Hostname,
		State: Pending, Reason: why, Since: since,
	}
	return true
}

// clearLate notes that the pod is attached, or gone.
func (e *Engine) clearLate(uid string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.late.refused, uid)
}

// refused are the pods that have no node of their own yet.
func (e *Engine) refused() (out []NodeStatus) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for uid, s := range e.late.refused {
		if e.nodes[uid] == nil {
			out = append(out, s)
		}
	}
	return out
}
