// SPDX-License-Identifier: BSD-3-Clause

package engine

import "context"

// Sync attaches the live pods that are not attached, and forgets those that are not live
// and do not come back within the grace period. ended are sandboxes that the runtime
// still lists though they have ended. Their pods may be about to get new ones, for
// instance after a reboot, so their grace period is ten times as long. Sync returns at
// once and works afterwards.
func (e *Engine) Sync(ctx context.Context, live []Pod, ended []string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	live = onePerUID(live)
	lists := map[string]listing{}
	for _, id := range ended {
		lists[id] = listedEnded
	}
	isLive := map[string]bool{} // by pod UID
	for _, pod := range live {
		lists[pod.SandboxID], isLive[pod.UID] = listedLive, true
	}
	for _, n := range e.snapshot() {
		id := n.sandboxID()
		l, ok := lists[id]
		switch {
		case isLive[n.uid] && l != listedLive:
			l = listedSuccessor
		case !ok:
			l = notListed
		}
		// One that is listed as live and was detached is about to end: the list
		// is older than that.
		if detached := n.noteListing(l); detached || l != listedLive {
			e.spawn(func() { n.awaitEnd(id) })
		}
	}
	round := e.nextRound()
	e.spawn(func() { e.attachAll(live, round) })
	return nil
}

// onePerUID keeps one sandbox of each pod: one whose pause process lives, and
// among several the last.
func onePerUID(pods []Pod) []Pod {
	at := map[string]int{}
	var out []Pod
	for _, pod := range pods {
		i, ok := at[pod.UID]
		switch {
		case !ok:
			at[pod.UID] = len(out)
			out = append(out, pod)
		case pod.PID != 0 || out[i].PID == 0:
			out[i] = pod
		}
	}
	return out
}
