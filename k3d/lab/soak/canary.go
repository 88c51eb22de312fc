// SPDX-License-Identifier: BSD-3-Clause

package soak

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/scene"
)

// canary is a pod that nothing may happen to.
type canary struct {
	*run
	pod    *scene.Pod
	stream *scene.Stream
}

// startCanary makes the pod and connects the peer to it.
func (r *run) startCanary(ctx context.Context) (*canary, error) {
	pod, err := r.scene.RunPod(ctx, lab.PodSpec{Name: "canary", Annotations: scene.OptIn()})
	if err != nil {
		return nil, err
	}
	podRecord := r.history.add("the canary", "canary", pod.Spec.UID, "demo-default-canary")
	r.history.sandbox(podRecord, pod.Pod)
	if err := r.scene.AwaitRunning(ctx, pod); err != nil {
		return nil, err
	}
	c := &canary{run: r, pod: pod}
	c.stream, err = r.scene.OpenStream(ctx, r.scene.AtPeer(), pod, pod.IP4())
	return c, err
}

// check reports a failure if a node that the plugin reports is the canary's and is another device than before.
func (c *canary) check(n scene.Node) {
	was := c.pod.Node()
	if n.SandboxID != c.pod.ID {
		return
	}
	if n.NodeID != was.NodeID || n.State == "Running" && !slices.Equal(n.Addresses, was.Addresses) {
		c.fail(fmt.Errorf("the canary was device %s at %v, is %s at %v: %s", was.NodeID, was.Addresses, n.NodeID, n.Addresses, n.Reason))
	}
}

// look asks the pod's kernel and the tailnet for the canary, whatever the plugin says.
func (c *canary) look(ctx context.Context) error {
	node := c.pod.Node()
	out, err := c.scene.Lab.InNode(ctx, "nsenter", "--net="+c.pod.NetNS, "--", "ip", "-o", "addr", "show", "dev", "ts0")
	if err != nil {
		return fmt.Errorf("looking at the canary: %w", err)
	}
	for _, addr := range node.Addresses {
		if !strings.Contains(out, addr.String()+"/") {
			return fmt.Errorf("expected the canary to have %v on ts0, saw %s", addr, out)
		}
	}
	devices, err := c.plane.Devices(ctx)
	if err != nil {
		return err
	}
	for _, d := range devices {
		if d.ID == node.NodeID && slices.Equal(d.Addresses, node.Addresses) {
			return nil
		}
	}
	return fmt.Errorf("expected the canary's device %s at %v in the tailnet, saw %+v", node.NodeID, node.Addresses, devices)
}

// lookOften does so until ctx is done. It tells of each silence that is longer than those before it, for the events next
// to it to explain it.
func (c *canary) lookOften(ctx context.Context) {
	told := 200 * time.Millisecond
	for pause(ctx, time.Second); ctx.Err() == nil; pause(ctx, time.Second) {
		if err := c.look(ctx); err != nil && ctx.Err() == nil {
			c.fail(err)
		}
		if s := c.silence(); s > told {
			told = s
			c.log("the canary's connection was silent for %v", s.Round(time.Millisecond))
		}
	}
}

// silence is the longest wait for an answer on its connection so far.
func (c *canary) silence() time.Duration {
	_, longest := c.stream.Answers()
	return longest
}

// leave checks that the connection is alive, and removes the pod.
func (c *canary) leave(ctx context.Context) {
	err := c.stream.AwaitMore(ctx, 10)
	if closeErr := c.stream.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		c.fail(fmt.Errorf("the canary's connection: %w", err))
	}
	if err := c.kubelet.stop(ctx, c.pod.ID); err != nil {
		c.fail(err)
	}
	if err := c.kubelet.remove(ctx, c.pod.ID); err != nil {
		c.fail(err)
	}
}
