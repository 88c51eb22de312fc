// SPDX-License-Identifier: BSD-3-Clause

package soak

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab/control"
	"tailscale-nri/k3d/lab/internal/proc"
)

// faults makes events happen, those of a lane in their order.
type faults struct {
	*run
	due     [lanes]chan event
	done    [lanes]atomic.Int64
	running sync.WaitGroup
}

func (r *run) newFaults(ctx context.Context, events int) *faults {
	f := &faults{run: r}
	for l := range lanes {
		f.due[l] = make(chan event, events)
		f.running.Go(func() {
			for e := range f.due[l] {
				if err := f.happen(ctx, e); err != nil && ctx.Err() == nil {
					f.fail(fmt.Errorf("%v: %w", e, err))
				}
				f.done[l].Add(1)
			}
		})
	}
	return f
}

// drain waits until all that was due is over.
func (f *faults) drain() {
	for l := range lanes {
		close(f.due[l])
	}
	f.running.Wait()
}

func (f *faults) happen(ctx context.Context, e event) error {
	if ctx.Err() != nil {
		return nil
	}
	f.log("%v", e)
	switch {
	case e.lane == plugin:
		return f.endPlugin(ctx, e)
	case e.lane == runtime:
		return f.kubelet.restart(ctx, e.signal, e.hold)
	case e.outage != control.Up:
		err := f.plane.SetOutage(ctx, e.outage)
		pause(ctx, e.hold)
		return errors.Join(err, f.plane.SetOutage(context.WithoutCancel(ctx), control.Up))
	default:
		err := f.plane.AddFault(ctx, e.fault)
		pause(ctx, e.hold)
		return errors.Join(err, f.plane.ClearFaults(context.WithoutCancel(ctx)))
	}
}

// endPlugin ends the plugin, or only its serving process, and sees to it that another one serves.
func (r *run) endPlugin(ctx context.Context, e event) error {
	err := r.alive()
	child := r.child()
	switch {
	case err != nil:
	case e.child && child != 0:
		err = r.endChild(ctx, child, e.signal)
	default:
		err = r.stopPlugin(ctx, e.signal)
	}
	if r.alive() == nil {
		return err
	}
	pause(ctx, e.hold)
	return errors.Join(err, r.startPlugin())
}

// endChild returns when the plugin has another child. One that was asked to end takes the plugin with it.
func (r *run) endChild(ctx context.Context, child int, sig unix.Signal) error {
	if err := unix.Kill(child, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("ending process %d: %w", child, err)
	}
	return eventually(ctx, func(context.Context) error {
		if err := r.alive(); err != nil {
			if sig == unix.SIGTERM {
				return nil
			}
			return err
		}
		if now := r.child(); now == 0 || now == child {
			return fmt.Errorf("expected the plugin %d to have another child than %d, saw %d", r.process.Load().PID(), child, now)
		}
		return nil
	})
}

// endPatience bounds how long a process takes to end, or to be started by its parent. An idle machine needs
// milliseconds; a loaded one must not fail for being slow.
const endPatience = time.Minute

// stopPlugin ends the plugin; its child has to end with it.
func (r *run) stopPlugin(ctx context.Context, sig unix.Signal) error {
	child := r.child()
	bounded, cancel := context.WithTimeout(ctx, endPatience)
	defer cancel()
	if err := r.process.Load().End(bounded, sig); err != nil {
		return err
	}
	return eventually(ctx, func(context.Context) error { return r.gone(child) })
}

func (r *run) gone(pid int) error {
	if _, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); pid != 0 && err == nil {
		return fmt.Errorf("expected process %d to end with its parent, the plugin, saw it alive", pid)
	}
	return nil
}

func (r *run) startPlugin() error {
	if err := r.scene.StartPlugin("GOTRACEBACK=all", "LOG_LEVEL="+r.cfg.LogLevel); err != nil {
		return err
	}
	r.process.Store(r.scene.Plugin)
	return nil
}

// alive is an error if the plugin has ended by itself.
func (r *run) alive() error {
	select {
	case <-r.process.Load().Done():
		return fmt.Errorf("the plugin, process %d, has ended by itself", r.process.Load().PID())
	default:
		return nil
	}
}

// child is the process that the plugin's own has started, which then is the one that serves; 0 if there is none.
func (r *run) child() int { return proc.Child(r.process.Load().PID()) }
