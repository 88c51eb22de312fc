// SPDX-License-Identifier: BSD-3-Clause

package soak

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/demo"
)

// witness is a pod that nothing may happen to.
type witness struct {
	*run
	pod    *demo.Pod
	stream *demo.Stream
}

// startWitness makes the pod and connects the peer to it.
func (r *run) startWitness(ctx context.Context) (*witness, error) {
	pod, err := r.scene.RunPod(ctx, lab.PodSpec{Name: "witness", Annotations: demo.OptIn()})
	if err != nil {
		return nil, err
	}
	role := r.cast.add("the witness", "witness", pod.Spec.UID, "demo-default-witness")
	r.cast.sandbox(role, pod.Pod)
	if err := r.scene.AwaitRunning(ctx, pod); err != nil {
		return nil, err
	}
	w := &witness{run: r, pod: pod}
	w.stream, err = r.scene.OpenStream(ctx, r.scene.AtPeer(), pod, pod.IP4())
	return w, err
}

// is wants a node that the plugin tells of to be who the witness was.
func (w *witness) is(n demo.Node) {
	was := w.pod.Node()
	if n.SandboxID != w.pod.ID {
		return
	}
	if n.NodeID != was.NodeID || n.State == "Running" && !slices.Equal(n.Addresses, was.Addresses) {
		w.fail(fmt.Errorf("the witness was device %s at %v, is %s at %v: %s", was.NodeID, was.Addresses, n.NodeID, n.Addresses, n.Reason))
	}
}

// look asks the pod's kernel and the tailnet for the witness, whatever the plugin says.
func (w *witness) look(ctx context.Context) error {
	node := w.pod.Node()
	out, err := w.scene.Lab.InNode(ctx, "nsenter", "--net="+w.pod.NetNS, "--", "ip", "-o", "addr", "show", "dev", "ts0")
	if err != nil {
		return fmt.Errorf("looking at the witness: %w", err)
	}
	for _, addr := range node.Addresses {
		if !strings.Contains(out, addr.String()+"/") {
			return fmt.Errorf("expected the witness to have %v on ts0, saw %s", addr, out)
		}
	}
	devices, err := w.plane.Devices(ctx)
	if err != nil {
		return err
	}
	for _, d := range devices {
		if d.ID == node.NodeID && slices.Equal(d.Addresses, node.Addresses) {
			return nil
		}
	}
	return fmt.Errorf("expected the witness's device %s at %v in the tailnet, saw %+v", node.NodeID, node.Addresses, devices)
}

// lookOften does so until ctx is done. It tells of each silence that is longer than those before it, for the events next
// to it to explain it.
func (w *witness) lookOften(ctx context.Context) {
	told := 200 * time.Millisecond
	for pause(ctx, time.Second); ctx.Err() == nil; pause(ctx, time.Second) {
		if err := w.look(ctx); err != nil && ctx.Err() == nil {
			w.fail(err)
		}
		if s := w.silence(); s > told {
			told = s
			w.log("the witness's connection was silent for %v", s.Round(time.Millisecond))
		}
	}
}

// silence is the longest wait for an answer on its connection so far.
func (w *witness) silence() time.Duration {
	_, longest := w.stream.Answers()
	return longest
}

// leave wants the connection to be alive, and removes the pod.
func (w *witness) leave(ctx context.Context) {
	err := w.stream.AwaitMore(ctx, 10)
	if closeErr := w.stream.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		w.fail(fmt.Errorf("the witness's connection: %w", err))
	}
	if err := w.kubelet.stop(ctx, w.pod.ID); err != nil {
		w.fail(err)
	}
	if err := w.kubelet.remove(ctx, w.pod.ID); err != nil {
		w.fail(err)
	}
}
