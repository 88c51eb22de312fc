// SPDX-License-Identifier: BSD-3-Clause

package soak

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/scene"
)

// life is one cycle under way.
type life struct {
	*run
	cycle
	podRecord *podRecord
	pods      []lab.Pod // all sandboxes so far
}

// live makes the cycle's pod, has it go through what its kind says, and removes it. The error names the pod.
func (r *run) live(ctx context.Context, c cycle) error {
	name := fmt.Sprintf("c%d", c.number)
	l := &life{run: r, cycle: c}
	// The hostname is given, since a second sandbox has another name: see sandbox.
	l.podRecord = r.history.add(fmt.Sprintf("cycle %d, %v", c.number, c.kind), name, fmt.Sprintf("uid-soak-%d", c.number), "soak-"+name)
	err := l.act(ctx)
	for _, pod := range l.pods {
		err = errors.Join(err, r.kubelet.remove(ctx, pod.ID))
	}
	if err != nil {
		return fmt.Errorf("%v: %w", l.podRecord, err)
	}
	return nil
}

// act ends with the stop of the last sandbox.
func (l *life) act(ctx context.Context) error {
	err := l.sandbox(ctx)
	if err != nil {
		return err
	}
	last := func() string { return l.pods[len(l.pods)-1].ID }
	switch l.kind {
	case ends:
		pause(ctx, l.pause)
	case runs:
		_, err = l.watch.await(ctx, last(), running)
		pause(ctx, l.pause)
	case talks:
		err = l.talk(ctx, last())
	case again:
		err = l.again(ctx)
	case deleted:
		err = l.administer(ctx, last(), l.plane.Delete, another)
	case expired:
		err = l.administer(ctx, last(), l.plane.Expire, l.loggedIn(ctx))
	}
	return errors.Join(err, l.kubelet.stop(ctx, last()))
}

// sandbox makes the pod's next one. A kubelet counts attempts in the sandbox's name; here names differ, and the UID
// makes it the same pod.
func (l *life) sandbox(ctx context.Context) error {
	name := l.podRecord.name
	if n := len(l.pods); n > 0 {
		name = fmt.Sprintf("%s-%d", name, n)
	}
	pod, err := l.kubelet.run(ctx, lab.PodSpec{
		Name: name, UID: l.podRecord.uid, Annotations: scene.OptIn("tailscale.com/hostname", l.podRecord.hostname),
	})
	if err != nil {
		return err
	}
	l.pods = append(l.pods, pod)
	l.history.sandbox(l.podRecord, pod)
	return nil
}

// talk checks that the peer's ping is answered. The pod has a container, which is removed before its sandbox, as a
// kubelet does it: containerd hangs for good if a plugin registers while it removes a sandbox that has some
// (internal/cri/server/sandbox_remove.go: RemovePodSandbox and RemoveContainer inside of it both block a plugin's
// synchronization, and a waiting writer bars the second reader).
func (l *life) talk(ctx context.Context, id string) error {
	if err := l.kubelet.container(ctx, id); err != nil {
		return err
	}
	node, err := l.watch.await(ctx, id, running)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := l.scene.Ping(ctx, l.scene.AtPeer(), node.Addresses[0])
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

// again kills the pause process, maybe before the node runs. In the next sandbox the pod is the node it was.
func (l *life) again(ctx context.Context) error {
	first := l.pods[0]
	was := scene.Node{}
	if l.number%3 > 0 {
		var err error
		if was, err = l.watch.await(ctx, first.ID, running); err != nil {
			return err
		}
	}
	pause(ctx, l.pause)
	if err := unix.Kill(first.PID, unix.SIGKILL); err != nil {
		return fmt.Errorf("killing the pause process %d: %w", first.PID, err)
	}
	if err := l.kubelet.stop(ctx, first.ID); err != nil {
		return err
	}
	if err := l.sandbox(ctx); err != nil {
		return err
	}
	next := l.pods[1]
	is, err := l.watch.await(ctx, next.ID, running)
	if err != nil {
		return err
	}
	if was.NodeID != "" && (is.NodeID != was.NodeID || fmt.Sprint(is.Addresses) != fmt.Sprint(was.Addresses)) {
		return fmt.Errorf("expected device %s at %v in the second sandbox too, saw %s at %v", was.NodeID, was.Addresses,
			is.NodeID, is.Addresses)
	}
	return nil
}

// administer does something to the device of a node that runs, and waits until the node is as after says of that device.
func (l *life) administer(ctx context.Context, id string, do func(context.Context, string) error, after func(was string) func(scene.Node) error) error {
	node, err := l.watch.await(ctx, id, running)
	if err != nil {
		return err
	}
	pause(ctx, l.pause)
	if err := do(ctx, node.NodeID); err != nil {
		return err
	}
	if l.number%4 == 0 {
		return nil // the pod ends while it registers again
	}
	_, err = l.watch.await(ctx, id, after(node.NodeID))
	return err
}

// loggedIn checks that a node runs as the device it was, which has logged in again.
func (l *life) loggedIn(ctx context.Context) func(was string) func(scene.Node) error {
	return func(was string) func(scene.Node) error {
		return func(n scene.Node) error {
			if n.NodeID != was {
				return fmt.Errorf("expected device %s to log in again, saw %s: %s", was, n.NodeID, n.Reason)
			}
			devices, err := l.plane.Devices(ctx)
			for _, d := range devices {
				if d.ID == was && d.Expired {
					return fmt.Errorf("expected device %s to log in again, its login is still expired, its node %s: %s", was, n.State, n.Reason)
				}
			}
			return errors.Join(err, running(n))
		}
	}
}
