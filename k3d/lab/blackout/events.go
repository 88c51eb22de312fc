// SPDX-License-Identifier: BSD-3-Clause

package blackout

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab/internal/wait"
)

// event is a restart of something.
type event struct {
	name     string // in a figure's name
	text     string
	restarts bool // whether the serving processes are new ones afterwards
	run      func(context.Context, *side) error
	// after puts things right again. The time watched ends before it; without it, when all is well.
	after func(context.Context, *side) error
}

const (
	// outageBefore is how long the control plane has been away when the process is killed, outageAfter how long it then
	// stays away: no gap of this event is measured beyond it.
	outageBefore = 2 * time.Second
	outageAfter  = 20 * time.Second
)

var events = []event{
	{name: "kill9", restarts: true, text: "SIGKILL, started again at once", run: func(ctx context.Context, s *side) error {
		return s.nodes.restart(ctx, unix.SIGKILL)
	}},
	{name: "term", restarts: true, text: "SIGTERM, its end, started again", run: func(ctx context.Context, s *side) error {
		return s.nodes.restart(ctx, unix.SIGTERM)
	}},
	{name: "containerd", text: "containerd killed and started again; stock has no part in it, and is the zero line",
		run: func(ctx context.Context, s *side) error { return s.nodes.restartRuntime(ctx) }},
	{name: "control", restarts: true, text: "kill9 2 s after control plane, DERP and STUN went away, which stay away for 20 s more: gaps end there",
		run:   killInOutage,
		after: func(ctx context.Context, s *side) error { return s.outage(ctx, false) }},
}

func killInOutage(ctx context.Context, s *side) error {
	if err := s.outage(ctx, true); err != nil {
		return err
	}
	return errors.Join(
		wait.Pause(ctx, outageBefore),
		s.nodes.restart(ctx, unix.SIGKILL),
		wait.Pause(ctx, outageAfter),
	)
}
