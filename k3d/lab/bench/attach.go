// SPDX-License-Identifier: BSD-3-Clause

package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"tailscale-nri/k3d/lab/internal/wait"
)

// attach measures how a pod comes into the tailnet: alone, and among many.
func attach(ctx context.Context, cfg Config, r *report) error {
	return onTailnet(ctx, cfg.Lab, func(t *tailnet) error {
		h, err := t.addHost(ctx, 0)
		if err != nil {
			return err
		}
		_, peer, err := t.addPeer(ctx)
		if err != nil {
			return err
		}
		ping := func(ctx context.Context, to netip.Addr) error {
			_, err := peer.run(ctx, t.lab.ToolPath(), "ping", "-timeout", "1s", to.String())
			return err
		}
		defer h.watch(ctx)()
		if err := h.oneByOne(ctx, cfg.Single, ping, r); err != nil {
			return err
		}
		before, err := h.log()
		if err != nil {
			return err
		}
		if err := h.burst(ctx, cfg.Burst, ping, r); err != nil {
			return err
		}
		log, err := h.log()
		if err != nil {
			return err
		}
		if err := errors.Join(addHooks(before, ofSingle, r), addHooks(log[len(before):], ofBurst, r)); err != nil {
			return err
		}
		r.figure("hook_p99_burst", "Hook/RunPodSandbox", ofBurst, unitMillis, 0.99)
		r.figure("attach_to_first_ping_p50", "Attach/firstPing", ofSingle, unitMillis, 0.5)
		r.figure("attach_to_first_ping_burst_p50", "Attach/firstPing", ofBurst, unitMillis, 0.5)
		return nil
	})
}

const (
	ofSingle = "single" // one pod after the other
	ofBurst  = "burst"  // many at once
)

// pinger sends one echo request from the peer and waits for its answer.
type pinger func(ctx context.Context, to netip.Addr) error

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// oneByOne attaches n pods, each after the one before has left the tailnet.
func (h *host) oneByOne(ctx context.Context, n int, ping pinger, r *report) error {
	for i := range n {
		p, err := h.joinAndPing(ctx, fmt.Sprintf("single%d", i), ofSingle, ping, r)
		if err != nil {
			return err
		}
		// What a ping costs here, of which starting labtool is the most: the first one above has it in it.
		begin := time.Now()
		if err := ping(ctx, p.addr(false)); err != nil {
			return err
		}
		r.add("Attach/laterPing", ofSingle, measured{unitMillis: millis(time.Since(begin))})
		if err := errors.Join(h.CRI().StopPod(ctx, p.id), h.CRI().RemovePod(ctx, p.id)); err != nil {
			return err
		}
		err = h.until(ctx, func(nodes map[string]node) error {
			if len(nodes) > 0 {
				return fmt.Errorf("expected pod single%d to leave, saw %d nodes", i, len(nodes))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// burst attaches n pods at once.
func (h *host) burst(ctx context.Context, n int, ping pinger, r *report) error {
	begin := time.Now()
	var pods errgroup.Group
	for i := range n {
		pods.Go(func() error {
			_, err := h.joinAndPing(ctx, fmt.Sprintf("burst%d", i), ofBurst, ping, r)
			return err
		})
	}
	err := pods.Wait()
	r.add("Attach/untilLastFirstPing", ofBurst, measured{unitMillis: millis(time.Since(begin))})
	return err
}

// joinAndPing runs a pod and pings it from the peer until it answers. Its address is known once its node runs.
func (h *host) joinAndPing(ctx context.Context, name, of string, ping pinger, r *report) (*pod, error) {
	p, err := h.join(ctx, name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := wait.Until(ctx, 0, func(ctx context.Context) error { return ping(ctx, p.addr(false)) }); err != nil {
		return nil, err
	}
	r.add("Attach/firstPing", of, measured{unitMillis: millis(time.Since(p.made))})
	r.add("Attach/sandbox", of, measured{unitMillis: millis(p.criTook)})
	r.add("Attach/running", of, measured{unitMillis: millis(p.node.ReadyIn)})
	return p, nil
}

// addHooks reads the time of each hook from the plugin's debug log.
func addHooks(log, of string, r *report) error {
	const attaching = "Hook/RunPodSandbox"
	for line := range strings.Lines(log) {
		var entry struct {
			Msg, Event string
			Took       time.Duration
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil || entry.Msg != "hook done" {
			continue // a panic of the past has no JSON
		}
		r.add("Hook/"+entry.Event, of, measured{unitMillis: millis(entry.Took)})
	}
	if len(r.get(attaching, of, unitMillis)) == 0 {
		return errors.New(`the plugin's debug log has no "hook done" of RunPodSandbox`)
	}
	return nil
}
