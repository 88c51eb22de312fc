// SPDX-License-Identifier: BSD-3-Clause

package scene

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"tailscale-nri/k3d/lab"
)

// ClusterTraffic fetches from each pod to each other and from the node to each, over eth0 and under eth0's addresses,
// and pings the node from each.
func (s *Scene) ClusterTraffic(ctx context.Context, pods ...*Pod) error {
	for _, to := range pods {
		for i, ip := range to.IPs {
			at := netip.MustParseAddr(ip)
			for _, from := range pods {
				if from == to {
					continue
				}
				if err := s.FetchAs(ctx, s.InPod(from), netip.MustParseAddr(from.IPs[i]), to, at); err != nil {
					return err
				}
			}
			if _, err := s.Fetch(ctx, s.OnNode(), at); err != nil {
				return err
			}
		}
		for _, ip := range []string{lab.NodeIP4, lab.NodeIP6} {
			if err := s.Ping(ctx, s.InPod(to), netip.MustParseAddr(ip)); err != nil {
				return err
			}
		}
	}
	return nil
}

// KillAndStart kills the plugin, starts another at once, and returns when the pods' nodes run again, with how long
// that took from the kill.
func (s *Scene) KillAndStart(ctx context.Context, pods ...*Pod) (time.Duration, error) {
	begin := time.Now()
	if err := s.Plugin.Kill(ctx); err != nil {
		return 0, err
	}
	if err := s.StartPlugin(); err != nil {
		return 0, err
	}
	for _, pod := range pods {
		if err := s.AwaitRunning(ctx, pod); err != nil {
			return 0, err
		}
	}
	back := time.Since(begin)
	return back, s.Registered(ctx)
}

// Refused checks that a pod is refused with an error that holds all of texts, which it returns, and that nothing is left
// of the pod.
func (s *Scene) Refused(ctx context.Context, spec lab.PodSpec, texts ...string) (refusal, err error) {
	before, err := s.Traces(ctx)
	if err != nil {
		return nil, err
	}
	id, refusal := s.Lab.CRI().RunPod(ctx, spec)
	if refusal == nil {
		return nil, fmt.Errorf("pod %s with %v: expected an error with %q, saw it run as %s", spec.Name, spec.Annotations, texts, id)
	}
	if !containsAll(refusal.Error(), texts) {
		return nil, fmt.Errorf("pod %s with %v: expected an error with %q, saw: %w", spec.Name, spec.Annotations, texts, refusal)
	}
	if err := s.Lab.CRI().RemoveNamed(ctx, spec.Name); err != nil {
		return nil, err
	}
	return refusal, s.AwaitTraces(ctx, before)
}

// AwaitTraces returns when there are just these.
func (s *Scene) AwaitTraces(ctx context.Context, want Traces) error {
	return eventually(ctx, nil, func(ctx context.Context) error {
		now, err := s.Traces(ctx)
		if err == nil && !now.Equal(want) {
			err = fmt.Errorf("expected %v; saw %v", want, now)
		}
		return err
	})
}
