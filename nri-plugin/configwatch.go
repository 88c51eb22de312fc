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
// A process that could not use its configuration waits here until it can.
// One that serves ends for a changed one and is started again by its supervisor,
// which costs the pods what a planned restart does; a changed one that is bad it
// does not use, says so, and remains ready: a slip in a ConfigMap, which comes to
// all nodes at once, must not take them down. So it does where its own is good no
// more, since a file that it names has gone.
type configWatch struct {
	getenv func(string) string
	began  values // what the process has begun with
	health *health
	log    *slog.Logger
	every  time.Duration // 0 is lookEvery

	waits bool   // for a configuration to begin with
	said  string // what the log has of one that cannot be used
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
	keys := changed(w.began, now)
	if err != nil {
		w.complain(err, len(keys) > 0 || !errors.Is(err, errNoToken))
		return false
	}
	if !w.waits && len(keys) == 0 {
		w.said = ""
		w.health.note("")
		return false
	}
	what := "the configuration has changed: starting again with it"
	if len(keys) == 0 {
		what = "the configuration can be used now: starting again with it"
	}
	w.log.Info(what, "changed", strings.Join(keys, " "))
	return true
}

// complain says what is wrong, in the log once and with a line for each value.
// It is a change, or what has become of a configuration that is as it was.
func (w *configWatch) complain(err error, change bool) {
	what, remark := w.trouble(err, change)
	if w.waits {
		w.health.become(misconfigured, oneLine(err))
	} else {
		w.health.note(remark + ": " + oneLine(err))
	}
	if text := what + err.Error(); w.said != text {
		w.said = text
		for line := range strings.SplitSeq(err.Error(), "\n") {
			w.log.Error(what, "err", line)
		}
	}
}

// trouble is what err means for this process, for the log and, of one that
// serves, for a probe.
func (w *configWatch) trouble(err error, change bool) (what, remark string) {
	switch {
	case w.waits && errors.As(err, new(privilegeError)):
		return "this process cannot serve: waiting to be replaced", ""
	case w.waits:
		return "the configuration cannot be used: waiting until it is mended", ""
	case change:
		return "the changed configuration cannot be used: going on with the old one", "a changed configuration is not used"
	}
	return "the configuration could not be used at another start: going on for now", "another start would fail"
}
