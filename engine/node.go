// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"tailscale.com/tstime"

	"tailscale-nri/engine/internal/podnet"
	"tailscale-nri/engine/internal/podstate"
)

// errRetired is attach's answer on a node that has left the map: the caller
// takes the one that is there now.
var errRetired = errors.New("node has been retired")

// node is the tailnet node of one pod. It does one thing at a time, run or
// leave, in a goroutine of its own: see task. Its states, and what leads from one to
// the next, are drawn in doc.go, and so is the order of the locks.
type node struct {
	e   *Engine
	uid string // of the pod
	dir string // of the state on disk

	// op has attach, detach, forget and the record take turns. It is held across local
	// work only.
	op   sync.Mutex
	rec  record     // guarded by op
	disk diskState  // guarded by op
	end  sandboxEnd // guarded by op

	// These have locks of their own.
	task      task    // run or leave
	published         // to others: status, log, news
	serving   serving // link, device, session
	dns       nodeDNS
	lease     identityLease // of a workload's identity
	written   written
}

// newNode returns the node of a record, which is new if the record names no
// link.
func newNode(e *Engine, dir string, r record) *node {
	fresh := r.Link == ""
	n := &node{e: e, uid: r.Pod.UID, dir: dir, rec: r, serving: newServing(fresh)}
	n.disk.fresh = fresh
	n.disk.foreign = !fresh && r.HostBoot != e.hostBoot && r.NetNS.Check() != nil
	n.published.begin(e, &r)
	if r.ResolvConf != nil {
		n.dns.search = r.TailnetSearch
		n.dns.know(r.ResolvConf, e.cfg.ClusterRanges)
	}
	return n
}

// adopt makes the pod's values those of the node.
func (n *node) adopt(pod Pod) {
	n.rec.Pod = pod
	n.setLogger(n.e.log, &pod)
	n.setPod(&pod)
}

func shortID(id string) string { return id[:min(len(id), 12)] }

// snapshot is the node's status.
func (n *node) snapshot() NodeStatus {
	s := n.current()
	if _, d := n.serving.current(); d != nil {
		s.LocalIn, s.LocalOut = trafficOf(&d.DirectIn), trafficOf(&d.DirectOut)
		s.CutRefusals = d.CutRefusals()
	}
	n.dns.amend(&s)
	return s
}

// attach records the pod, makes its link and starts the node. The link of an empty pod is
// only begun. It does nothing if ctx is done before its turn has come: the caller has
// given up, and the pod may have another sandbox by now.
func (n *node) attach(ctx context.Context, pod Pod, empty bool) (created bool, err error) {
	n.op.Lock()
	defer n.op.Unlock()
	if n.disk.retired {
		return false, errRetired
	}
	if pod, err = n.asBegun(pod); err != nil {
		return false, err
	}
	if n.rec.Pod.SandboxID == pod.SandboxID && n.task.active() && !n.rec.Forgotten {
		// A record that leads to no netns of today, as after a reboot, is created again.
		if err := n.catchUp(); !errors.Is(err, podnet.ErrGone) {
			return false, err
		}
	}
	if err := cmp.Or(ctx.Err(), n.checkRoom()); err != nil {
		if n.disk.fresh {
			n.disk.retired = true
			n.e.drop(n)
		}
		return false, err
	}
	start := time.Now()
	before := n.rec
	begun, err := n.prepare(pod, empty)
	if err != nil {
		n.undo(before)
		return false, err
	}
	n.disk.fresh = false
	n.end.begin()
	if before.Link != "" && before.Link != n.rec.Link {
		n.removeLink(before.Link)
	}
	n.setAttachTime(start)
	n.way.begin(start)
	n.setState(Pending, reasonStarting)
	n.logAttached(n.rec.Link, time.Since(start))
	n.setLinked(begun == nil)
	n.switchTo(func(ctx context.Context) { n.run(ctx, begun) })
	return true, nil
}

// catchUp makes the link of a node that was resumed and has not made it yet, and
// completes one that was only begun. n.op is held.
func (n *node) catchUp() error {
	if n.end.stopped.Load() || n.linkedSandbox() == n.rec.Pod.SandboxID {
		return nil
	}
	_, err := n.completeLink(n.rec)
	if err == nil {
		n.setLinked(true)
	}
	return err
}

// prepare writes the record, then makes the link, or begins that of an empty pod.
func (n *node) prepare(pod Pod, empty bool) (*begunLink, error) {
	paths := []string{pod.NetNS}
	if pod.PID != 0 {
		paths = append(paths, fmt.Sprintf("/proc/%d/ns/net", pod.PID))
	}
	ns, err := podnet.FindNamespace(paths...)
	if err != nil {
		return nil, err
	}
	earlier := n.rec.Pod.SandboxID
	n.adopt(pod)
	n.rec.Retried = !n.disk.fresh && !n.rec.Forgotten && earlier != pod.SandboxID
	if !podnet.IsHostLink(n.rec.Link, pod.SandboxID) {
		n.rec.Link = podnet.HostLink(pod.SandboxID)
	}
	n.rec.NetNS, n.rec.Forgotten = ns, false
	if !n.disk.foreign {
		n.servedHere()
	}
	if err := errors.Join(n.rec.NewSecrets(), n.save()); err != nil {
		return nil, err
	}
	if empty {
		return n.beginLink(n.rec)
	}
	_, err = n.ensureLink(n.rec)
	return nil, err
}

// undo takes a failed attach back. A link that was there before stays.
func (n *node) undo(before record) {
	if n.rec.Link != before.Link {
		n.removeLink(n.rec.Link)
	}
	if n.disk.fresh {
		n.retire()
		return
	}
	n.rec = before
	n.adopt(before.Pod)
	n.keep()
}

// retire removes the node from disk and from the engine. n.op is held.
func (n *node) retire() {
	n.disk.retired = true
	if err := n.removeState(); err != nil {
		n.log().Error("removing the pod's state", "dir", n.dir, "err", err)
	}
	n.e.drop(n)
}

// resume takes up what an earlier process was doing.
func (n *node) resume() {
	n.op.Lock()
	defer n.op.Unlock()
	switch {
	case n.disk.retired || n.task.active():
		// Attach or Forget was faster.
	case n.rec.Forgotten:
		n.setState(Leaving, "")
		n.switchTo(n.leave)
	default:
		n.setAttachTime(time.Now())
		n.setState(Pending, reasonStartingAgain)
		returned := n.e.returning.begin()
		n.serving.returned.Store(&returned)
		n.switchTo(n.runAgain)
	}
}

// detach stops the node of an ended sandbox.
func (n *node) detach(sandboxID string) {
	n.op.Lock()
	defer n.op.Unlock()
	if n.rec.Pod.SandboxID != sandboxID || n.rec.Forgotten {
		return
	}
	n.detachLocked()
}

func (n *node) detachLocked() {
	link := n.rec.Link
	n.end.stopped.Store(true)
	n.switchTo(func(ctx context.Context) {
		n.removeLink(link)
		n.setState(Stopped, "")
		n.logState(Stopped, "stopped", "reason", "the sandbox has ended")
		n.tellEnd(NewsStopped)
		n.releaseLater(ctx)
	})
}

// switchTo ends what the node does and starts act, once that has ended. n.op is held.
func (n *node) switchTo(act func(context.Context)) { n.task.switchTo(n.e.ctx, n.e.spawn, act) }

// runAgain is run for a node that was attached before.
func (n *node) runAgain(ctx context.Context) { n.run(ctx, nil) }

// run keeps the node up until ctx is done or the pod has ended. It is the one
// place of retry: all below is straight-line and returns errors. begun is the link, if
// that was only begun; it is completed meanwhile.
func (n *node) run(ctx context.Context, begun *begunLink) {
	defer n.startGuard(ctx, begun)()
	defer n.startLocalAPI(ctx)()
	for pause := newBackoff(); ; {
		start := time.Now()
		err := n.serve(ctx, begun)
		switch {
		case ctx.Err() != nil, n.e.ctx.Err() != nil: // the engine's context ends before those derived from it
			return
		case errors.Is(err, podnet.ErrGone) && errors.Is(n.record().NetNS.Check(), podnet.ErrGone):
			n.setState(Stopped, "the pod's network namespace is gone")
			n.logState(Stopped, "stopped", "reason", "the pod's network namespace is gone")
			n.tellEnd(NewsStopped)
			id := n.sandboxID()
			n.e.spawn(func() { n.awaitEnd(id) })
			return
		case isTaken(err):
			n.dropIdentity()
		case errors.Is(err, podnet.ErrGone):
			err = errors.New("the link was taken away or down: making it again")
		}
		if time.Since(start) > longEnough {
			pause = newBackoff()
		}
		n.e.tally.restarts.Add(1)
		n.setPending(err)
		if !tstime.Sleep(ctx, pause.next()) {
			return
		}
	}
}

// update changes the record, on disk too, on behalf of what the node does.
func (n *node) update(change func(*record)) {
	n.op.Lock()
	defer n.op.Unlock()
	if n.disk.retired {
		return
	}
	change(&n.rec)
	n.keep()
}

// record returns a copy of the record.
func (n *node) record() record {
	n.op.Lock()
	defer n.op.Unlock()
	return n.rec
}

// statePath is where tailscale.com keeps the node's keys.
func (n *node) statePath() string { return filepath.Join(n.dir, podstate.StateFile) }
