// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"tailscale-nri/k3d/lab/soak"
)

// soaking has pods come and go on a lab of its own, and fails if anything of them is left. The logs of a run that has
// found something are in Build/soak.
func soaking(ctx context.Context, args []string) error {
	cfg := soak.Config{Lab: config(), Out: os.Stdout}
	cfg.Lab.Name = cmp.Or(cfg.Lab.Name, "tsnri-soak")
	cfg.Lab.Logger = nil
	plugin, err := cfg.Lab.PluginPath()
	if err != nil {
		return err
	}
	flags := flag.NewFlagSet("soak", flag.ContinueOnError)
	flags.IntVar(&cfg.Cycles, "cycles", 1000, "pods that come and go")
	flags.IntVar(&cfg.Parallel, "parallel", 8, "how many at a time")
	flags.Uint64Var(&cfg.Seed, "seed", uint64(rand.Uint32()), "what draws the plan; any other one each time without it")
	flags.DurationVar(&cfg.Bound, "bound", 0, "how long cycles are begun (3s for each); the rest is left out")
	flags.StringVar(&cfg.LogLevel, "log", "", "the plugin's LOG_LEVEL (debug)")
	flags.StringVar(&cfg.Lab.Plugin, "plugin", "", "another build of the plugin")
	flags.StringVar(&cfg.Keep, "keep", "", "where the logs of a failed run go (soak/SEED where the binaries are)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	cfg.Keep = cmp.Or(cfg.Keep, filepath.Join(filepath.Dir(filepath.Dir(plugin)), "soak", fmt.Sprint(cfg.Seed)))
	result, err := soak.Run(ctx, cfg)
	if err != nil {
		result.Failures = append(result.Failures, err.Error())
	}
	result.Print(os.Stdout, cfg.Seed)
	if n := len(result.Leaks) + len(result.Failures); n > 0 {
		return fmt.Errorf("%d leaks and other failures; again with: make soak SEED=%d CYCLES=%d PARALLEL=%d", n, cfg.Seed, cfg.Cycles, cfg.Parallel)
	}
	return nil
}
