// SPDX-License-Identifier: BSD-3-Clause

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/demo"
)

// memory reads the plugin's by number of pods, for the builds that there are, and how large these are.
func memory(ctx context.Context, cfg Config, r *report) error {
	builds := []struct {
		of, path string
		runs     bool
	}{
		{"all build tags", "", true},
		{"only the tags it insists on", cfg.FewTags, true},
		{"no build tags", cfg.Untagged, false},
	}
	for i, b := range builds {
		if i > 0 && b.path == "" {
			continue
		}
		at := cfg.Lab
		at.Plugin = b.path
		if err := addSize(at, b.of, r); err != nil {
			return err
		}
		if !b.runs {
			continue
		}
		if err := memoryOf(ctx, cfg, at, b.of, r); err != nil {
			return fmt.Errorf("plugin with %s: %w", b.of, err)
		}
	}
	return nil
}

const unitMiB = "MiB"

// addSize of the binary, which is stripped.
func addSize(at lab.Config, of string, r *report) error {
	path, err := at.PluginPath()
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("missing a build of the plugin: %w; build it with: make bench", err)
	}
	r.add("size of the binary", of, unitMiB, float64(info.Size())/mebibyte)
	return nil
}

// memoryOf adds pods to one process and reads its memory at each number.
func memoryOf(ctx context.Context, cfg Config, at lab.Config, of string, r *report) error {
	return onScene(ctx, at, func(scene *demo.Scene) error {
		s, done := watchScene(ctx, scene)
		defer func() { done() }()
		have := 0
		for _, want := range cfg.Pods {
			for ; have < want; have++ {
				if _, err := s.join(ctx, fmt.Sprintf("pod%d", have)); err != nil {
					return err
				}
			}
			done() // nobody asks for anything while it is idle
			rss, err := settled(ctx, scene.Plugin.Serving(), cfg.Settle)
			if err != nil {
				return err
			}
			r.add(fmt.Sprintf("memory with %d pods, idle", want), of, unitMiB, float64(rss)/mebibyte)
			s, done = watchScene(ctx, scene)
		}
		return nil
	})
}

// settled is the memory of a process once it has stayed within 2 % for so long, or after ten times as long.
func settled(ctx context.Context, pid int, span time.Duration) (int64, error) {
	const looks = 10
	var seen []int64
	for range 10 * looks {
		select {
		case <-time.After(span / looks):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		rss, err := residentMemory(pid)
		if err != nil {
			return 0, err
		}
		seen = append(seen, rss)
		if len(seen) < looks {
			continue
		}
		last := seen[len(seen)-looks:]
		if low, high := slices.Min(last), slices.Max(last); high-low <= low/50 {
			return rss, nil
		}
	}
	if len(seen) == 0 {
		return 0, errors.New("the memory was never read")
	}
	return seen[len(seen)-1], nil
}
