// SPDX-License-Identifier: BSD-3-Clause

package soak

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab"
)

// kubelet asks containerd for pods. What fails since containerd was away, or since the plugin ended in the middle of its
// hook, is asked again, as the real one does; any other failure is one.
type kubelet struct {
	cri        *lab.CRI
	containerd *lab.Containerd

	dumped sync.Once

	mu    sync.Mutex
	times int           // that containerd was ended
	back  chan struct{} // closed when it has been started again; nil while it runs
}

// callPatience bounds one call of containerd.
const callPatience = 60 * time.Second

// restart ends containerd and starts it again after hold.
func (k *kubelet) restart(ctx context.Context, sig unix.Signal, hold time.Duration) error {
	back := make(chan struct{})
	k.mu.Lock()
	k.times++
	k.back = back
	k.mu.Unlock()
	if err := k.containerd.Stop(ctx, sig); err != nil {
		return err
	}
	pause(ctx, hold)
	// It is started also if ctx is done: the run's end needs it.
	if err := k.containerd.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.back = nil
	close(back)
	return nil
}

// await returns when containerd is there, with how often it was ended so far.
func (k *kubelet) await(ctx context.Context) (times int, err error) {
	k.mu.Lock()
	times, back := k.times, k.back
	k.mu.Unlock()
	if back == nil {
		return times, ctx.Err()
	}
	select {
	case <-back:
		return k.await(ctx)
	case <-ctx.Done():
		return times, fmt.Errorf("waiting for containerd: %w", context.Cause(ctx))
	}
}

func (k *kubelet) ended() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.times
}

// ask makes a call that may be made twice.
func (k *kubelet) ask(ctx context.Context, call func(context.Context) error) error {
	for {
		times, err := k.await(ctx)
		if err != nil {
			return err
		}
		bounded, cancel := context.WithTimeout(ctx, callPatience)
		err = call(bounded)
		hangs := bounded.Err() != nil && ctx.Err() == nil
		cancel()
		if hangs {
			err = errors.Join(err, k.dump())
		}
		if err == nil || k.ended() == times && !cutShort(err) || ctx.Err() != nil {
			return err
		}
	}
}

// cutShort reports whether the plugin ended on purpose in the middle of its hook: it refuses the pod then, and a kubelet
// tries again.
func cutShort(err error) bool {
	return strings.Contains(err.Error(), "tailscale-nri: ") && strings.HasSuffix(err.Error(), context.Canceled.Error())
}

// dump has a containerd that hangs list its goroutines in its log, once.
func (k *kubelet) dump() (err error) {
	k.dumped.Do(func() {
		if process := k.containerd.Process(); process != nil {
			err = unix.Kill(process.PID(), unix.SIGUSR1)
		}
	})
	return err
}

// run makes a sandbox. Of one that containerd has left half made there is nothing when it is tried again.
func (k *kubelet) run(ctx context.Context, spec lab.PodSpec) (pod lab.Pod, err error) {
	tried := false
	err = k.ask(ctx, func(ctx context.Context) error {
		if tried {
			if err := k.cri.RemoveNamed(ctx, spec.Name); err != nil {
				return err
			}
		}
		tried = true
		id, err := k.cri.RunPod(ctx, spec)
		if err != nil {
			return err
		}
		pod, err = k.cri.PodStatus(ctx, id)
		return err
	})
	return pod, err
}

// container runs one in a sandbox. Of a try that was cut short a container may be left, which the sandbox's removal
// finds.
func (k *kubelet) container(ctx context.Context, id string) error {
	try := 0
	return k.ask(ctx, func(ctx context.Context) error {
		try++
		_, err := k.cri.RunContainer(ctx, id, lab.ContainerSpec{Name: fmt.Sprintf("tool-%d", try)})
		return err
	})
}

// stop and remove may be called for a sandbox that has been removed.
func (k *kubelet) stop(ctx context.Context, id string) error {
	return k.ask(ctx, func(ctx context.Context) error { return k.cri.StopPod(ctx, id) })
}

func (k *kubelet) remove(ctx context.Context, id string) error {
	return k.ask(ctx, func(ctx context.Context) error { return k.cri.RemovePod(ctx, id) })
}

// removeAll removes every sandbox.
func (k *kubelet) removeAll(ctx context.Context) error {
	return k.ask(ctx, func(ctx context.Context) error {
		list, err := k.cri.ListPods(ctx)
		for _, pod := range list {
			err = errors.Join(err, k.cri.StopPod(ctx, pod.ID), k.cri.RemovePod(ctx, pod.ID))
		}
		return err
	})
}
