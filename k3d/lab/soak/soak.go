// SPDX-License-Identifier: BSD-3-Clause

package soak

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/control"
	"tailscale-nri/k3d/lab/internal/wait"
	"tailscale-nri/k3d/lab/scene"
)

// Config says how much of it there is.
type Config struct {
	Lab lab.Config
	// Cycles are the pods that come and go, Parallel how many at a time. 0 means 200, and 8.
	Cycles, Parallel int
	// Seed draws the plan. 0 is a seed like any other.
	Seed uint64
	// Bound ends the beginning of cycles: those that were not begun by then are left out, and the rest counts. A slow
	// machine does less, and finds as little wrong. 0 means 3 s for each, a minute at least.
	Bound time.Duration
	// Settle is how long what is of no pod may stay. The plugin waits for a minute before it gives up a pod that went
	// without a runtime event. 0 means 150 s.
	Settle time.Duration
	// LogLevel is the plugin's. "" means debug.
	LogLevel string
	// Keep is where the logs go if anything is wrong; it is made. "" means a new directory for temporary files.
	Keep string
	// Out is where progress and the result are written; nil drops them.
	Out io.Writer

	// leak is called before the end, for a test to leave something behind.
	leak func(context.Context, *scene.Scene) error
}

func (c Config) withDefaults() Config {
	c.Cycles, c.Parallel = cmp.Or(c.Cycles, 200), cmp.Or(c.Parallel, 8)
	c.Bound = cmp.Or(c.Bound, max(time.Minute, time.Duration(c.Cycles)*3*time.Second))
	c.Settle = cmp.Or(c.Settle, 150*time.Second)
	c.LogLevel = cmp.Or(c.LogLevel, "debug")
	if c.Out == nil {
		c.Out = io.Discard
	}
	return c
}

// Result is what a run has found.
type Result struct {
	Leaks    []string
	Failures []string      // what else was not as it must be
	Silence  time.Duration // the longest of the canary's connection
	Logs     string        // where the logs were kept; "" if nothing was wrong
}

// run is a soak under way.
type run struct {
	cfg     Config
	plan    plan
	begin   time.Time
	scene   *scene.Scene
	plane   *lab.ControlPlane
	kubelet *kubelet
	history history
	watch   *watch
	process atomic.Pointer[lab.Process] // the plugin's, the one last started
	canary  atomic.Pointer[canary]
	faults  *faults

	mu       sync.Mutex
	failures []string
	begun    int
	ended    int
}

const progressEvery = 5 * time.Second

// Run soaks a lab of its own. Its error says why the run could not go on; what it has found is in the result.
func Run(ctx context.Context, cfg Config) (result Result, err error) {
	r := &run{cfg: cfg.withDefaults(), begin: time.Now()}
	r.plan = makePlan(r.cfg.Seed, r.cfg.Cycles)
	r.log("seed %d: %d cycles, %d at a time, %d events", r.cfg.Seed, r.cfg.Cycles, r.cfg.Parallel, len(r.plan.events))
	r.scene, err = scene.Open(ctx, scene.Config{Lab: r.cfg.Lab})
	if err != nil {
		return result, err
	}
	defer func() {
		if w := r.canary.Load(); w != nil {
			result.Silence = w.silence()
		}
		result.Failures = r.failures
		if err != nil || len(result.Failures)+len(result.Leaks) > 0 {
			var keepErr error
			result.Logs, keepErr = r.keepLogs()
			err = errors.Join(err, keepErr)
		}
		err = errors.Join(err, r.scene.Close(context.WithoutCancel(ctx)))
	}()
	if r.plane, err = r.scene.Lab.Control(ctx); err != nil {
		return result, err
	}
	r.kubelet = &kubelet{cri: r.scene.Lab.CRI(), containerd: r.scene.Lab.Containerd()}
	result.Leaks, err = r.all(ctx)
	return result, err
}

// all is the run from its first pod to its last.
func (r *run) all(ctx context.Context) (leaks []string, err error) {
	for _, begin := range []func(context.Context) error{r.scene.StartPeer, r.startPluginRegistered} {
		if err := begin(ctx); err != nil {
			return nil, err
		}
	}
	bare, err := r.remains(ctx)
	if err != nil {
		return nil, err
	}
	asking, stop := context.WithCancel(ctx)
	defer stop()
	r.watch = newWatch(r.scene, r.seen)
	go r.watch.run(asking)
	base, err := r.warmUp(ctx, bare)
	if err != nil {
		return nil, err
	}
	if err := r.churnWithCanary(ctx); err != nil {
		return nil, err
	}
	if r.cfg.leak != nil {
		if err := r.cfg.leak(ctx, r.scene); err != nil {
			return nil, err
		}
	}
	if leaks, err = r.settleAll(ctx, bare); err != nil {
		return leaks, err
	}
	if err := errors.Join(r.alive(), r.crashes()); err != nil {
		return leaks, err
	}
	last, err := r.count(ctx, &base)
	if err != nil {
		return leaks, err
	}
	r.log("after warming up the plugin had %v; in the end it has %v", base, last)
	return append(leaks, last.above(base)...), nil
}

// seen records what the plugin says of a node.
func (r *run) seen(n scene.Node) {
	r.history.device(n.SandboxID, n.NodeID)
	if w := r.canary.Load(); w != nil {
		w.check(n)
	}
}

// warmUp has a few pods come and go in peace, and counts what there is then. None of them gets another sandbox: such a
// pod is remembered for a minute.
func (r *run) warmUp(ctx context.Context, bare remains) (base processStats, err error) {
	var few []cycle
	for _, k := range []kind{ends, runs, talks, deleted, expired} {
		for range 2 {
			few = append(few, cycle{-len(few) - 1, k, 0})
		}
	}
	if err := r.cycles(ctx, few, time.Now().Add(r.cfg.Bound), func(int) {}); err != nil {
		return base, err
	}
	if leaks, err := r.settle(ctx, bare, never); err != nil || len(leaks) > 0 {
		return base, errors.Join(err, fmt.Errorf("after warming up there are %q", leaks))
	}
	if base, err = r.count(ctx, nil); err != nil {
		return base, err
	}
	return base, r.restart(ctx)
}

// churnWithCanary runs the plan while the canary is there, and then removes all pods.
func (r *run) churnWithCanary(ctx context.Context) error {
	canary, err := r.startCanary(ctx)
	if err != nil {
		return err
	}
	r.canary.Store(canary)
	looking, stop := context.WithCancel(ctx)
	var looks sync.WaitGroup
	looks.Go(func() { canary.lookOften(looking) })
	err = r.churn(ctx)
	stop()
	looks.Wait()
	if calmErr := r.calmDown(ctx); calmErr != nil {
		return errors.Join(err, calmErr)
	}
	if err != nil {
		r.fail(err) // what there is can be looked at all the same
	}
	canary.leave(ctx)
	return r.kubelet.removeAll(ctx)
}

// restart starts the plugin again after it was counted.
func (r *run) restart(ctx context.Context) error {
	if err := r.stopPlugin(ctx, unix.SIGTERM); err != nil {
		return err
	}
	return r.startPluginRegistered(ctx)
}

func (r *run) startPluginRegistered(ctx context.Context) error {
	if err := r.startPlugin(); err != nil {
		return err
	}
	return r.scene.Registered(ctx)
}

// churn has the plan happen.
func (r *run) churn(ctx context.Context) error {
	r.faults = r.newFaults(ctx, len(r.plan.events))
	r.begun, r.ended = 0, 0 // of warming up
	stop := r.report()
	defer stop()
	err := r.cycles(ctx, r.plan.cycles, time.Now().Add(r.cfg.Bound), func(number int) {
		for _, e := range r.plan.events {
			if e.at == number {
				r.faults.due[e.lane] <- e
			}
		}
	})
	r.faults.drain()
	return err
}

// cycles has the pods live, several at a time. It tells begins of each one's number. It begins none after until, and
// none when so much fails that there is no point in going on.
func (r *run) cycles(ctx context.Context, cycles []cycle, until time.Time, begins func(number int)) error {
	next := make(chan cycle)
	var workers sync.WaitGroup
	for range r.cfg.Parallel {
		workers.Go(func() {
			for c := range next {
				if err := r.live(ctx, c); err != nil && ctx.Err() == nil {
					r.fail(err)
				}
				r.mu.Lock()
				r.ended++
				r.mu.Unlock()
			}
		})
	}
	done := 0
	for _, c := range cycles {
		if ctx.Err() != nil || r.failed() >= tooMany {
			break
		}
		if time.Now().After(until) {
			r.log("the time for cycles is over: %d of %d are left out", len(cycles)-done, len(cycles))
			break
		}
		begins(c.number)
		r.mu.Lock()
		r.begun++
		r.mu.Unlock()
		next <- c
		done++
	}
	close(next)
	workers.Wait()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%d of %d cycles were begun: %w", done, len(cycles), context.Cause(ctx))
	case r.failed() >= tooMany:
		return fmt.Errorf("%d of %d cycles were begun: too much fails", done, len(cycles))
	}
	return nil
}

const tooMany = 10

// calmDown ends all faults, and waits for the plugin to answer.
func (r *run) calmDown(ctx context.Context) error {
	if err := errors.Join(r.plane.SetOutage(ctx, control.Up), r.plane.ClearFaults(ctx)); err != nil {
		return err
	}
	return eventually(ctx, func(ctx context.Context) error {
		_, err := r.scene.Status(ctx)
		return err
	})
}

// crashed is what the Go runtime says of a process that it ends for a fault.
var crashed = regexp.MustCompile(`(?m)^(panic: |fatal error: |unexpected fault address|runtime: goroutine stack exceeds).*$`)

// crashes looks for them in the plugin's log.
func (r *run) crashes() error {
	log, err := os.ReadFile(r.process.Load().LogPath())
	if err != nil {
		return fmt.Errorf("reading the plugin's log: %w", err)
	}
	for _, line := range crashed.FindAllString(string(log), -1) {
		r.fail(errors.New("the plugin has crashed: " + line))
	}
	return nil
}

// keepLogs copies the logs to where they outlive the lab.
func (r *run) keepLogs() (dir string, err error) {
	if dir = r.cfg.Keep; dir == "" {
		dir, err = os.MkdirTemp("", "tsnri-soak-")
	} else {
		err = os.MkdirAll(dir, 0o755)
	}
	for _, name := range []string{"plugin", "containerd", "control"} {
		text, readErr := os.ReadFile(filepath.Join(r.scene.Lab.Dir(), "log", name+".log"))
		err = errors.Join(err, readErr, os.WriteFile(filepath.Join(dir, name+".log"), text, 0o644))
	}
	return dir, err
}

// pause waits for d, or for the end of ctx, which what follows finds out.
func pause(ctx context.Context, d time.Duration) { _ = wait.Pause(ctx, d) }

// eventually waits for check to return nil, or for endPatience.
func eventually(ctx context.Context, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, endPatience)
	defer cancel()
	return wait.Until(ctx, pollInterval, check)
}
