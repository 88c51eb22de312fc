// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"errors"
	"time"

	"tailscale-nri/engine/internal/podnet"
)

// forget makes the node leave the tailnet.
func (n *node) forget(sandboxID string) error {
	n.op.Lock()
	defer n.op.Unlock()
	if n.retired || n.rec.Pod.SandboxID != sandboxID || n.rec.Forgotten {
		return nil
	}
	if n.rec.Retried {
		// The pod has had another sandbox before. If this one is removed
		// because it failed, the next is on its way.
		n.detachLocked()
		n.removed = true
		n.e.spawn(func() { n.forgetUnlessBack(sandboxID) })
		return nil
	}
	return n.forgetLocked()
}

func (n *node) forgetLocked() error {
	n.rec.Forgotten = true
	if err := n.rec.save(n.dir); err != nil {
		n.rec.Forgotten = false
		return err
	}
	n.become(n.leave)
	return nil
}

// listing is what the runtime said of the node's sandbox when it last listed
// all.
type listing int

const (
	unknown listing = iota
	listedLive
	listedEnded
	notListed
)

func (n *node) listed(l listing) {
	n.op.Lock()
	defer n.op.Unlock()
	n.list = l
}

// reached notes that the netns is there.
func (n *node) reached() {
	n.op.Lock()
	defer n.op.Unlock()
	n.seen = true
}

// forgetUnlessBack forgets a sandbox that has ended without a word, once the
// grace period is over. If it turns out to be alive, it is served again.
func (n *node) forgetUnlessBack(sandboxID string) {
	grace := n.e.cfg.Grace
	for waited := grace; sleep(n.e.ctx, grace); waited += grace {
		if n.lookAgain(sandboxID, waited) {
			return
		}
	}
}

// lookAgain reports whether there is nothing left to wait for.
func (n *node) lookAgain(sandboxID string, waited time.Duration) bool {
	n.op.Lock()
	defer n.op.Unlock()
	if n.retired || n.rec.Forgotten || n.rec.Pod.SandboxID != sandboxID {
		return true
	}
	err := n.rec.NetNS.Check()
	switch {
	case n.removed:
	case err == nil && !n.active() && !n.stopped && n.list != notListed && n.list != listedEnded:
		n.become(n.run)
		return true
	case !errors.Is(err, podnet.ErrGone) || !n.mayForget(waited):
		return false
	}
	n.log.Info("the pod has gone without a word: forgetting it")
	if err := n.forgetLocked(); err != nil {
		n.log.Error("forgetting the pod", "err", err)
		return false
	}
	return true
}

// mayForget reports whether a netns that cannot be found is reason enough to
// give the identity up, which cannot be had back. It is if this process has
// seen the netns before, or if the runtime does not list the sandbox as live;
// one that is listed as live is out of our sight, not gone.
func (n *node) mayForget(waited time.Duration) bool {
	switch n.list {
	case notListed:
		return true
	case listedEnded:
		return waited >= 10*n.e.cfg.Grace
	}
	return n.seen
}
