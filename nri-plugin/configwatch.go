// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"
)

// errAgain ends a process that is to be started again at once, with the
// configuration that there is now.
var errAgain = errors.New("the configuration has changed")

// lookEvery is how often the directory is looked at. The kubelet takes up to a
// minute to bring a change there.
const lookEvery = 2 * time.Second

// configWatch looks at a directory of variables for as long as the process runs.
//
// A process that could not use its configuration waits here for a better one.
// One that serves ends for a changed one and is started again by its supervisor,
// which costs the pods what a planned restart does; a changed one that is bad it
// does not use, says so, and remains ready: a slip in a ConfigMap, which comes to
// all nodes at once, must not take them down.
type configWatch struct {
	getenv func(string) string
	began  values // what the process has begun with
	health *health
	log    *slog.Logger
	every  time.Duration // 0 is lookEvery

	waits bool   // for a better configuration
	said  string // what the log has of a bad one
}

// Run returns errAgain once there is something to begin anew with, and nil at
// the end of ctx.
func (w *configWatch) Run(ctx context.Context) error {
	if w.every == 0 {
		w.every = lookEvery
	}
	for {
		sleep(ctx, w.every)
		if ctx.Err() != nil {
			return nil
		}
		if w.look() {
			return errAgain
		}
	}
}

// look reports whether the configuration is worth another start.
func (w *configWatch) look() bool {
	now, _, err := loadConfig(w.getenv)
	if err == nil && w.waits {
		err = checkPrivileges()
	}
	if err != nil {
		w.complain(err)
		return false
	}
	keys := changed(w.began, now)
	if !w.waits && len(keys) == 0 {
		w.said = ""
		w.health.note("")
		return false
	}
	w.log.Info("the configuration has changed: starting again with it", "changed", strings.Join(keys, " "))
	return true
}

// complain says what is wrong, in the log once and with a line for each value.
func (w *configWatch) complain(err error) {
	if w.waits {
		w.health.become(misconfigured, oneLine(err))
	} else {
		w.health.note("a changed configuration is not used: " + oneLine(err))
	}
	if w.said == err.Error() {
		return
	}
	w.said = err.Error()
	what := "the configuration cannot be used: waiting for a better one"
	if !w.waits {
		what = "the changed configuration cannot be used: going on with the old one"
	}
	for line := range strings.SplitSeq(w.said, "\n") {
		w.log.Error(what, "err", line)
	}
}
