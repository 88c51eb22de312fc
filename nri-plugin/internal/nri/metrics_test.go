// SPDX-License-Identifier: BSD-3-Clause

package nri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"

	"tailscale-nri/nri-plugin/internal/metrics"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

// Each event counts once, under its result; one that hangs is a timeout.
func TestMetricsOfHooks(t *testing.T) {
	h := &statussocket.Health{}
	p := &Plugin{Log: slog.New(slog.DiscardHandler), Meters: metrics.New(h, 0)}
	sb := &api.PodSandbox{Id: "s", Name: "web", Namespace: "default"}
	for _, end := range []func(context.Context) error{
		func(context.Context) error { return nil },
		func(context.Context) error { return nil },
		func(context.Context) error { return errors.New("refused") },
		func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_ = p.hook(ctx, "RunPodSandbox", sb, end)
		cancel()
	}
	var got []string
	for hook, b := range p.Meters.Read().Hooks {
		got = append(got, fmt.Sprintf("%s %s %d", hook.Event, hook.Result, b.Count))
	}
	slices.Sort(got)
	if want := []string{"RunPodSandbox error 1", "RunPodSandbox ok 2", "RunPodSandbox timeout 1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
