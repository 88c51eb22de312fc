// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/engine/tailnet"
)

// victimEnv makes the test binary a process that runs an engine, does what it
// is told on standard input, and kills itself when it is told to.
const victimEnv = "TSNRI_TEST_VICTIM"

// A victim's patience: Config.Grace, Config.SweepAfter and Config.copyPatience.
const (
	victimGrace      = 300 * time.Millisecond
	victimSweepAfter = time.Hour

	victimCopyPatience = 2 * time.Second
)

// point is a moment at which a process is killed: right before or right after
// it takes a step for the Nth time.
type point struct {
	Step  step
	N     int // from 1, counted from the order to report
	After bool
}

func (p point) String() string {
	when := "before"
	if p.After {
		when = "after"
	}
	return fmt.Sprintf("%s %s %d", when, p.Step, p.N)
}

// order is what a victim is told. It answers each with a report.
type order struct {
	Do string

	// Of "boot".
	Dir, APIURL, ControlURL string
	AuthKey                 string        // "" is OAuth
	Settled                 time.Duration // Config.copySettled; 0 is a second
	Identities, Host        string        // URL of the parent's store, "" is none
	Calm                    bool          // an identity is not renewed by the way

	// Of "boot" and "watch": whether steps are reported from now on, and the
	// one at which to die; nil is none.
	Watch bool
	Die   *point
	Stop  bool // it is stopped there, and may go on

	Pod     Pod      // of "begin" and "attach"
	Sandbox string   // of "detach" and "forget"
	Live    []Pod    // of "sync"
	Ended   []string // of "sync"
}

// report is what a victim says: an answer or a step.
type report struct {
	Done   bool
	Err    string
	Status []NodeStatus

	Step *point
}

type victim struct {
	*Engine

	mu    sync.Mutex
	out   *json.Encoder
	watch bool
	die   *point
	stop  bool
	taken map[point]int // by point with N 0
}

// runVictim returns when nobody is there any more to give orders.
func runVictim() int {
	v := &victim{out: json.NewEncoder(os.Stdout)}
	in := json.NewDecoder(os.Stdin)
	for {
		var o order
		if err := in.Decode(&o); err != nil {
			return 0
		}
		r := report{Done: true}
		if err := v.obey(o); err != nil {
			r.Err = err.Error()
		}
		if o.Do == "status" {
			r.Status = v.Status()
		}
		v.say(r)
	}
}

func (v *victim) obey(o order) error {
	ctx := context.Background()
	switch o.Do {
	case "boot":
		v.watchFor(o)
		return v.boot(o)
	case "watch":
		v.watchFor(o)
		return nil
	case "status":
		return nil
	case "begin":
		return v.AttachEmpty(ctx, o.Pod)
	case "attach": // and its first container
		if err := v.AttachEmpty(ctx, o.Pod); err != nil {
			return err
		}
		_, err := v.Attach(ctx, o.Pod)
		return err
	case "detach":
		return v.Detach(ctx, o.Sandbox)
	case "forget":
		return v.Forget(ctx, o.Sandbox)
	case "sync":
		return v.Sync(ctx, o.Live, o.Ended)
	}
	return fmt.Errorf("unknown order %q", o.Do)
}

func (v *victim) boot(o order) (err error) {
	level := slog.LevelDebug
	if os.Getenv("TSNRI_TEST_TRACE") != "" {
		level = LevelTrace
	}
	cfg := Config{
		StateDir: o.Dir, AttachTimeout: 20 * time.Second, Grace: victimGrace, onStep: v.onStep,
		Logger:     slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
		SweepAfter: victimSweepAfter, sweepFirst: 200 * time.Millisecond, sweepEvery: 500 * time.Millisecond,
		namePause: 100 * time.Millisecond, copyPatience: victimCopyPatience, copyPause: 200 * time.Millisecond,
		copySettled: cmp.Or(o.Settled, time.Second),
	}
	if o.AuthKey != "" {
		cfg.Tailnet, err = tailnet.NewStatic(tailnet.StaticConfig{AuthKey: o.AuthKey, ControlURL: o.ControlURL})
	} else {
		cfg.Tailnet, err = tailnet.NewOAuth(tailnet.OAuthConfig{
			ClientID: "lab-client", ClientSecret: "lab-secret",
			BaseURL: o.APIURL, ControlURL: o.ControlURL, Cluster: "k8s", Logger: cfg.Logger,
		})
	}
	if o.Identities != "" {
		quickLease(remoteIdentities{o.Identities}, o.Host)(&cfg)
		if o.Calm {
			cfg.renewEvery = time.Hour
		}
	}
	if err == nil {
		v.Engine, err = New(cfg)
	}
	if err == nil {
		go v.Run(context.Background())
	}
	return err
}

func (v *victim) watchFor(o order) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.watch, v.die, v.stop, v.taken = o.Watch, o.Die, o.Stop, map[point]int{}
}

// onStep reports the step. At the one at which to die, nothing comes after
// that: the lock is kept.
func (v *victim) onStep(s step, taken bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.watch {
		return
	}
	p := point{Step: s, After: taken}
	v.taken[p]++
	p.N = v.taken[p]
	v.out.Encode(report{Step: &p})
	if v.die != nil && *v.die == p && v.stop {
		unix.Kill(unix.Getpid(), unix.SIGSTOP)
		time.Sleep(100 * time.Millisecond) // another thread may have taken the signal: this one goes on until it is stopped
	} else if v.die != nil && *v.die == p {
		unix.Kill(unix.Getpid(), unix.SIGKILL)
		select {}
	}
}

func (v *victim) say(r report) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.out.Encode(r)
}
