// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"tailscale.com/tstime"
	"tailscale.com/wgengine/router"

	"tailscale-nri/engine/internal/podnet"
)

// A node's guard restores what is changed about its link from outside.
const (
	// settleChanges is how long the guard waits for the rest of a change: a link
	// that is set down loses its routes one by one.
	settleChanges = 50 * time.Millisecond
	// restoresAtOnce is how many times in restless a link is restored at once. More
	// changes than that come from a program that repeats them, and are restored every
	// slowRestore.
	restoresAtOnce = 6
	restless       = time.Minute
	slowRestore    = 2 * time.Second
	// looksAtOnce is how many times in restless a link is checked at once, whether
	// anything was missing or not. A pod may make harmless changes without end, and too
	// many changes in one pod have all links checked.
	looksAtOnce = 20
	// retryRestore is the pause after a restoration that has failed.
	retryRestore = time.Second
	// linesPerHour is how many lines a guard has in the log within an hour: a pod that
	// changes its own ts0 once in a while, forever, must not fill it.
	linesPerHour = 20
)

// watchLinks has the nodes hear of changes of their links.
func (e *Engine) watchLinks() (err error) {
	if e.watch, err = podnet.OpenWatch(); err != nil {
		return err
	}
	go e.watch.Run(e.ctx.Done(), func(err error) {
		e.log.Warn("lost the watch on the pods' links, opening another", "err", err)
	})
	return nil
}

func (n *node) wakeGuard() { n.serving.guarded.wake() }

// startGuard guards the node's link until the function that it returns is called. That
// function waits until the guard has ended. A link that was only begun is completed first.
func (n *node) startGuard(ctx context.Context, begun *begunLink) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.complete(ctx, begun)
		n.guard(ctx)
	}()
	return func() { cancel(); <-done }
}

// guard restores changes of the link, each time, until ctx is done.
func (n *node) guard(ctx context.Context) {
	var p pace
	last := "" // what was missing last
	calm := time.NewTimer(0)
	defer calm.Stop()
	defer n.clearGuarded()
	for {
		select {
		case <-ctx.Done():
			return
		case <-calm.C:
			n.setGuarded("", "")
			continue
		case <-n.serving.guarded.changed:
		}
		pause, count := p.pause(time.Now())
		if count >= restoresAtOnce {
			n.setGuarded(fmt.Sprintf("ts0 was changed from outside %d times within a minute; restoring it in %v", count, slowRestore), "")
		}
		if !tstime.Sleep(ctx, pause) {
			return
		}
		n.serving.guarded.drain()
		start := time.Now()
		p.looked.note(start, restless)
		missing, err := n.restore()
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, podnet.ErrGone):
			// The session notices that.
		case err != nil:
			calm.Stop()
			n.cannotRestore(&p, err)
			time.AfterFunc(retryRestore, n.wakeGuard)
			continue
		case len(missing) > 0:
			last = strings.Join(missing, ", ")
			count = p.restored.note(start, restless)
			n.logRestored(&p, count, missing, time.Since(start))
		}
		unstable := ""
		if count >= restoresAtOnce {
			unstable = fmt.Sprintf("ts0 was changed from outside %d times within a minute, last: %s", count, last)
		}
		n.setGuarded("", unstable)
		calm.Reset(restless)
	}
}

// logRestored logs a restoration, the count-th within restless. Once they are too many,
// status says so.
func (n *node) logRestored(p *pace, count int, missing []string, took time.Duration) {
	level, msg := slog.LevelDebug, "ts0 was changed from outside, and is restored"
	if count == restoresAtOnce {
		msg = "ts0 keeps being changed from outside: from now on it is restored every " + slowRestore.String()
	}
	if count <= restoresAtOnce {
		level, msg = p.level(slog.LevelWarn, msg)
	}
	n.log().Log(context.Background(), level, msg, "missing", strings.Join(missing, ", "), "took", took)
}

// restore undoes changes of the fence, of the link, its drop filters first, and then of
// what the router has put into the pod. It returns what was missing. An attach waits
// for the link, but not for the router, which reads all the pod's routes.
func (n *node) restore() (missing []string, err error) {
	g := &n.serving.guarded
	missing, fenceErr := g.restoreFence()
	router, more, err := g.restoreLink()
	missing = append(missing, more...)
	if err = errors.Join(err, fenceErr); err != nil || router == nil {
		return missing, err
	}
	more, err = router.Restore()
	return append(missing, more...), err
}

// cannotRestore publishes why ts0 is not as it should be, and logs it once.
func (n *node) cannotRestore(p *pace, err error) {
	why := "ts0 cannot be set up: " + err.Error()
	if n.setBroken(why) {
		level, msg := p.level(slog.LevelError, "ts0 cannot be set up, trying again")
		n.log().Log(context.Background(), level, msg, "err", err)
	}
}

// guardedRouter wakes the guard when the router fails.
type guardedRouter struct {
	router.Router
	n *node
}

func (r guardedRouter) Set(cfg *router.Config) error {
	err := r.Router.Set(cfg)
	if err != nil {
		r.n.wakeGuard()
	}
	return err
}
