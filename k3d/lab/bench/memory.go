// SPDX-License-Identifier: BSD-3-Clause

package bench

import (
	"context"
	"fmt"
	"time"

	"tailscale-nri/k3d/lab/internal/proc"
	"tailscale-nri/k3d/lab/internal/wait"
)

// The builds of the plugin that the memory part compares. ofAsks is the new one, with pods that ask for what costs memory.
const (
	ofNew    = "new"
	ofAsks   = "dns-socket"
	ofBefore = "before"
	ofServed = "served" // the new one with metrics, in the scrape part
)

// The shapes of Config.Shapes.
const (
	shapeMesh  = "mesh"
	shapeApart = "apart"
)

// memoryOver reads the plugin's memory by number of pods, in two shapes of tailnet; in one of them also with pods that
// ask for names and for the socket.
func memoryOver(ctx context.Context, cfg Config, r *report) error {
	for _, shape := range cfg.Shapes {
		for _, build := range []struct{ of, path string }{{ofNew, cfg.Lab.Plugin}, {ofAsks, cfg.Lab.Plugin}, {ofBefore, cfg.Before}} {
			if build.of == ofBefore && build.path == "" || build.of == ofAsks && shape != shapeApart {
				continue
			}
			at := cfg.Lab
			at.Plugin = build.path
			err := onTailnet(ctx, at, func(t *tailnet) error { return t.memoryOf(ctx, cfg, shape, build.of, r) })
			if err != nil {
				return fmt.Errorf("%s, %s: %w", shape, build.of, err)
			}
		}
	}
	return nil
}

// memoryOf adds pods to one host and reads the plugin's memory at each number: the resident memory of the process that
// serves, and the proportional one of it and its supervisor, which share the binary's text. Two stock tailscaleds are in
// the same tailnet, and what one of them holds is read too. With the last number it reads what the process uses while
// nothing happens, and how long it takes to say how its nodes are.
func (t *tailnet) memoryOf(ctx context.Context, cfg Config, shape, of string, r *report) error {
	if err := t.plane.SetApart(ctx, shape == shapeApart); err != nil {
		return err
	}
	h, err := t.addHost(ctx, 0)
	if err != nil {
		return err
	}
	if of == ofAsks {
		h.asks = []string{"tailscale.com/dns", "tailscale.com/socket"}
	}
	var stock []int
	var caller *place // that sees the pods
	if of == ofNew {
		pids, at, err := t.addPeers(ctx)
		if err != nil {
			return err
		}
		stock = pids
		if shape == shapeMesh {
			caller = &at
		}
	}
	have := 0
	for _, want := range cfg.Pods {
		if err := h.joinAll(ctx, have, want-have); err != nil {
			return err
		}
		have = want
		name := fmt.Sprintf("Memory/shape=%s/pods=%d", shape, want)
		held, err := settledMemory(ctx, h.plugin.Serving(), cfg.Settle)
		if err != nil {
			return err
		}
		both, err := proc.ReadMemory(h.pids()...)
		if err != nil {
			return err
		}
		r.add(name, of, measured{unitRSS: held.RSS, unitPSS: both.PSS})
		if err := r.stockMemory(name, stock); err != nil {
			return err
		}
		r.figure("memory_"+of+"/"+name, name, of, unitRSS, 0.5)
		r.ratio("memory_ratio/"+name, ofNew, ofBefore, unitRSS, name)
		if of == ofAsks {
			r.more("memory_dns_socket_each/"+name, ofAsks, ofNew, name, want)
		}
		if err := cfg.heapProfile(ctx, h, name+"/"+of); err != nil {
			return err
		}
	}
	at := fmt.Sprintf("shape=%s/pods=%d", shape, have)
	if err := h.idle(ctx, cfg, "Idle/"+at, of, r); err != nil {
		return err
	}
	return t.statusTimes(ctx, h, caller, at, of, r)
}

// addPeers adds two stock tailscaleds, and returns their PIDs and the place of one of them.
func (t *tailnet) addPeers(ctx context.Context) (pids []int, at place, err error) {
	for range 2 {
		peer, where, err := t.addPeer(ctx)
		if err != nil {
			return nil, place{}, err
		}
		pids, at = append(pids, peer.Process().PID()), where
	}
	return pids, at, nil
}

// stockMemory reports what one of the stock tailscaleds holds, if there are any.
func (r *report) stockMemory(name string, pids []int) error {
	if len(pids) == 0 {
		return nil
	}
	each, err := proc.ReadMemory(pids...)
	if err != nil {
		return err
	}
	n := float64(len(pids))
	r.add(name, ofStock, measured{unitRSS: each.RSS / n, unitPSS: each.PSS / n})
	r.figure("memory_stock_each/"+name, name, ofStock, unitPSS, 0.5)
	return nil
}

// idle reads what a process uses that is asked for nothing.
func (h *host) idle(ctx context.Context, cfg Config, name, of string, r *report) error {
	if err := wait.Pause(ctx, cfg.Calm); err != nil {
		return err
	}
	pid := h.plugin.Serving()
	before, err := proc.CPUTime(pid)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := wait.Pause(ctx, cfg.Idle); err != nil {
		return err
	}
	after, err := proc.CPUTime(pid)
	if err != nil {
		return err
	}
	r.add(name, of, measured{unitIdle: 1000 * (after - before).Seconds() / time.Since(begin).Seconds()})
	r.figure("idle_"+of+"/"+name, name, of, unitIdle, 0.5)
	return nil
}

// recovery loads a pair for a while and watches what its daemons hold afterwards, until that is back within
// recoveryLimit of what it was before, or for cfg.Watch.
func recovery(ctx context.Context, cfg Config, r *report) error {
	return onTailnet(ctx, cfg.Lab, func(t *tailnet) error {
		pairs, hosts, err := t.makePairs(ctx)
		if err != nil {
			return err
		}
		for _, p := range pairs {
			if p.name == ofLocal {
				continue
			}
			if err := p.recover(ctx, cfg, r); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
		return cfg.heapProfile(ctx, hosts[1], "Recovery")
	})
}

const (
	// recoveryLimit is how much more than before the load counts as having recovered.
	recoveryLimit = 1.3
	recoverySteps = 12 // of cfg.Watch
)

func (p *pair) recover(ctx context.Context, cfg Config, r *report) error {
	for i, pid := range p.daemons {
		before, err := settledMemory(ctx, pid, cfg.Settle)
		if err != nil {
			return err
		}
		r.add(fmt.Sprintf("Recovery/daemon=%d/before", i), p.name, measured{unitRSS: before.RSS, unitPSS: before.PSS})
	}
	if _, err := p.iperf(ctx, false, "-P", "4", "-t", seconds(cfg.Load)); err != nil {
		return err
	}
	recovered := make([]float64, len(p.daemons))
	begin := time.Now()
	for step := range recoverySteps + 1 {
		after := cfg.Watch * time.Duration(step) / recoverySteps
		if err := wait.Pause(ctx, time.Until(begin.Add(after))); err != nil {
			return err
		}
		for i, pid := range p.daemons {
			now, err := proc.ReadMemory(pid)
			if err != nil {
				return err
			}
			name := fmt.Sprintf("Recovery/daemon=%d", i)
			r.add(fmt.Sprintf("%s/after=%v", name, after), p.name, measured{unitRSS: now.RSS, unitPSS: now.PSS})
			if now.RSS > recoveryLimit*r.get(name+"/before", p.name, unitRSS)[0] {
				recovered[i] = -1
			} else if step == 0 || recovered[i] < 0 {
				recovered[i] = after.Seconds()
			}
		}
	}
	p.recoveryFigures(r, cfg, recovered)
	return nil
}

// recoveryFigures are the time until the memory was back for good, -1 if it never was, and how it stood in the end.
func (p *pair) recoveryFigures(r *report, cfg Config, recovered []float64) {
	for i, value := range recovered {
		name := fmt.Sprintf("Recovery/daemon=%d", i)
		before := r.get(name+"/before", p.name, unitRSS)[0]
		share := func(after time.Duration) float64 {
			return r.get(fmt.Sprintf("%s/after=%v", name, after), p.name, unitRSS)[0] / before
		}
		figure := fmt.Sprintf("memory_recovery_%s/daemon=%d", p.name, i)
		r.figures = append(r.figures,
			Figure{figure, value, "s", value, value, 1},
			Figure{figure + "/over_before", share(cfg.Watch), "ratio", share(cfg.Watch), share(0), recoverySteps + 1})
	}
}
