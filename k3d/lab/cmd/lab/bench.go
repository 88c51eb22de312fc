// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"tailscale-nri/k3d/lab/bench"
)

// benchmark measures on labs of its own and writes a table, Build/bench.json and Build/bench.txt.
func benchmark(ctx context.Context, args []string) (failed error) {
	cfg := bench.Config{Lab: config(), Table: os.Stdout}
	cfg.Lab.Name = cmp.Or(cfg.Lab.Name, "tsnri-bench")
	cfg.Lab.Logger = nil
	build, err := cfg.Lab.BuildDir()
	if err != nil {
		return err
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.Func("only", "parts, comma separated: "+strings.Join(bench.Parts(), ", "), splitInto(&cfg.Only))
	flags.Func("shapes", "of the parts memory and scrape: mesh, apart (both)", splitInto(&cfg.Shapes))
	flags.Func("pods", "numbers of pods of the memory part (1,10,50,100,200)", func(text string) error {
		for _, field := range strings.Split(text, ",") {
			n, err := strconv.Atoi(field)
			if err != nil {
				return err
			}
			cfg.Pods = append(cfg.Pods, n)
		}
		return nil
	})
	flags.IntVar(&cfg.Rounds, "rounds", 0, "rounds of traffic (5)")
	flags.DurationVar(&cfg.Span, "for", 0, "how long one transfer goes on (4s)")
	flags.DurationVar(&cfg.Load, "load", 0, "how long the traffic of the recovery part goes on (1m)")
	flags.DurationVar(&cfg.Watch, "watch", 0, "how long memory is watched afterwards (2m)")
	flags.DurationVar(&cfg.Calm, "calm", 0, "how long it is left alone before that (1m)")
	flags.DurationVar(&cfg.Idle, "idle", 0, "how long an idle plugin's CPU time is counted (1m)")
	flags.StringVar(&cfg.Lab.Plugin, "plugin", "", "another build of the plugin")
	flags.StringVar(&cfg.Before, "before", "", "a build of the plugin to compare the memory with")
	flags.StringVar(&cfg.Profiles, "profiles", "", "directory for profiles; takes -plugin .build/bench/profile (make profile)")
	out := flags.String("out", filepath.Join(build, "bench"), "where the results go: OUT.json and OUT.txt")
	if err := flags.Parse(args); err != nil {
		return err
	}
	for suffix, to := range map[string]*io.Writer{".json": &cfg.JSON, ".txt": &cfg.Lines} {
		file, err := os.Create(*out + suffix)
		if err != nil {
			return fmt.Errorf("writing the result: %w", err)
		}
		defer func() { failed = errors.Join(failed, file.Close()) }()
		*to = file
	}
	return bench.Run(ctx, cfg)
}

func splitInto(list *[]string) func(string) error {
	return func(text string) error {
		*list = strings.Split(text, ",")
		return nil
	}
}
