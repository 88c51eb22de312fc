// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tailscale.com/tstime"

	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/errtext"
	"tailscale-nri/nri-plugin/internal/logging"
	"tailscale-nri/nri-plugin/internal/podspec"
	"tailscale-nri/nri-plugin/internal/privileges"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

// errRestart ends a process that is to be started again at once, with the
// present configuration.
var errRestart = errors.New("the configuration has changed")

// lookEvery is how often the directory is looked at. The kubelet takes up to a
// minute to bring a change there.
const lookEvery = 2 * time.Second

// configWatch looks at the directory of variables and at the policy for as long as
// the process runs.
//
// A process that could not use its configuration waits here until it can.
// One that serves ends when the configuration changes and its supervisor starts it
// again, which costs the pods what a planned restart does. If the changed one is bad,
// the process does not use it, logs that, and remains ready: a mistake in a ConfigMap,
// which reaches all hosts at once, must not take them down. The same holds if its own
// configuration has become invalid, since a file that it names has gone. If only the
// policy changes, the new one counts at once, without a restart, unless its
// config.ClusterRanges differ.
type configWatch struct {
	getenv   func(string) string
	began    config.Values     // what the process started with
	ranges   []netip.Prefix    // of the policy at that time
	policies *podspec.Policies // nil where there is no policy
	health   *statussocket.Health
	log      *slog.Logger
	every    time.Duration // 0 is lookEvery

	waits   bool   // for a configuration to begin with
	emptied bool   // the policy's file was empty at the last look
	said    string // what was logged of a configuration that cannot be used
}

// Run returns errRestart once there is a configuration to restart with, and nil at
// the end of ctx.
func (w *configWatch) Run(ctx context.Context) error {
	if w.every == 0 {
		w.every = lookEvery
	}
	for {
		tstime.Sleep(ctx, w.every)
		if ctx.Err() != nil {
			return nil
		}
		if w.look() {
			return errRestart
		}
	}
}

// look reports whether the configuration requires a restart.
func (w *configWatch) look() bool {
	now, cfg, err := config.Load(w.getenv)
	again := w.adopt(now, cfg)
	if err == nil && w.waits {
		err = privileges.Check()
	}
	keys := config.Changed(w.began, now)
	if err != nil {
		w.complain(err, len(keys) > 0 || !errors.Is(err, config.ErrNoToken))
		return false
	}
	if !w.waits && len(keys) == 0 && !again {
		w.said = ""
		w.health.Note("")
		return false
	}
	what := "the configuration has changed: starting again with it"
	switch {
	case again && len(keys) == 0:
		what = "the policy's clusterRanges have changed: starting again with them"
	case len(keys) == 0:
		what = "the configuration can be used now: starting again with it"
	}
	w.log.Info(what, "changed", strings.Join(keys, " "))
	return true
}

// adopt puts the policy that was read into effect, if it can be used and comes from the
// file that the process started with. It reports whether the policy needs a restart.
func (w *configWatch) adopt(now config.Values, cfg config.Config) (again bool) {
	was := w.policies.Load()
	if w.waits || was == nil || cfg.Policy == nil || now[settings.PolicyFile] != w.began[settings.PolicyFile] {
		return false
	}
	// A file that is written in place is empty for a moment, and an empty one is the
	// default policy.
	first := cfg.Policy.Text == "" && !w.emptied
	w.emptied = cfg.Policy.Text == ""
	if first && was.Text != "" {
		return false
	}
	if was.Text != cfg.Policy.Text {
		w.policies.Set(cfg.Policy)
		w.log.Info("the policy has changed: it counts for pods that start from now on", "file", cfg.PolicyFile, "rules", len(cfg.Policy.RuleNames()))
	}
	return !slices.Equal(cfg.Policy.Ranges, w.ranges)
}

// complain logs what is wrong, once and with a line for each value. The cause is a
// change, or a configuration that has become invalid by itself.
func (w *configWatch) complain(err error, change bool) {
	what, remark := w.trouble(err, change)
	if w.waits {
		w.health.Become(statussocket.Misconfigured, errtext.OneLine(err))
	} else {
		w.health.Note(remark + ": " + errtext.OneLine(err))
	}
	if text := what + err.Error(); w.said != text {
		w.said = text
		logging.Error(w.log, what, err)
	}
}

// trouble is what err means for this process: a text for the log and, if the process
// serves, one for a probe.
func (w *configWatch) trouble(err error, change bool) (what, remark string) {
	switch {
	case w.waits && errors.As(err, new(privileges.Error)):
		return "this process cannot serve: waiting to be replaced", ""
	case w.waits:
		return "the configuration cannot be used: waiting until it is fixed", ""
	case change:
		return "the changed configuration cannot be used: going on with the old one", "a changed configuration is not used"
	}
	return "the configuration has become invalid: going on with the one in use, a restart would fail", "a restart would fail"
}
