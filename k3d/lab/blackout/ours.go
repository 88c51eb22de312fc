// SPDX-License-Identifier: BSD-3-Clause

package blackout

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/internal/nsthread"
	"tailscale-nri/k3d/lab/internal/wait"
	"tailscale-nri/k3d/lab/scene"
)

// ours are pods of one plugin. They are bare sandboxes: nothing but a netns is asked of them.
type ours struct {
	scene      *scene.Scene
	pods       []*scene.Pod
	registered int // how often the plugin has been since it was last started
}

const registeredLine = "registered with the container runtime"

// join runs one more pod and waits for its node.
func (o *ours) join(ctx context.Context) (place, error) {
	spec := lab.PodSpec{Name: fmt.Sprintf("pod%d", len(o.pods)+1), Annotations: scene.OptIn()}
	pod, err := o.scene.RunSandbox(ctx, spec)
	if err != nil {
		return place{}, err
	}
	o.pods = append(o.pods, pod)
	if err := o.scene.AwaitRunning(ctx, pod); err != nil {
		return place{}, err
	}
	ns, err := nsthread.OpenNetNS(pod.PID)
	return place{pod.Spec.Name, ns, pod.IP4()}, err
}

// restart ends what serves the pods and has it started again at once, by its supervisor if that is another process.
func (o *ours) restart(ctx context.Context, sig unix.Signal) error {
	if serving := o.scene.Plugin.Serving(); sig == unix.SIGKILL && serving != o.scene.Plugin.PID() {
		if err := unix.Kill(serving, sig); err != nil {
			return fmt.Errorf("killing the plugin's process %d: %w", serving, err)
		}
		o.registered++
		return nil
	}
	if err := o.scene.Plugin.End(ctx, sig); err != nil {
		return err
	}
	o.registered = 1
	return o.scene.StartPlugin()
}

func (o *ours) pids() []int { return []int{o.scene.Plugin.Serving()} }

// restartRuntime makes the plugin register once more.
func (o *ours) restartRuntime(ctx context.Context) error {
	o.registered++
	return o.scene.Lab.Containerd().Restart(ctx, unix.SIGKILL)
}

// settled returns when the plugin is registered and says that all nodes run.
func (o *ours) settled(ctx context.Context) error {
	if err := o.scene.AwaitLogTimes(ctx, o.registered, registeredLine); err != nil {
		return err
	}
	return wait.Until(ctx, pollInterval, o.allRun)
}

// allRun is an error if the node of a pod does not run.
func (o *ours) allRun(ctx context.Context) error {
	nodes, err := o.scene.Status(ctx)
	if err != nil {
		return err
	}
	running := map[string]bool{}
	for _, n := range nodes {
		running[n.SandboxID] = n.State == "Running"
	}
	for _, pod := range o.pods {
		if !running[pod.ID] {
			return fmt.Errorf("expected the node of %s to run", pod.FullName())
		}
	}
	return nil
}
