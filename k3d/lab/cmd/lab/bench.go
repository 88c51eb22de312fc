// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"tailscale-nri/k3d/lab/bench"
)

// benchmark measures on a lab of its own and writes Build/bench.json beside the table.
func benchmark(ctx context.Context, args []string) error {
	cfg := bench.Config{Lab: config(), Table: os.Stdout}
	cfg.Lab.Name = cmp.Or(cfg.Lab.Name, "tsnri-bench")
	cfg.Lab.Logger = nil
	plugin, err := cfg.Lab.PluginPath()
	if err != nil {
		return err
	}
	build := filepath.Dir(filepath.Dir(plugin))
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	only := flags.String("only", "", "parts, comma separated: attach, memory, traffic")
	flags.IntVar(&cfg.Rounds, "rounds", 0, "rounds of traffic (5)")
	flags.DurationVar(&cfg.Span, "for", 0, "how long one transfer goes on (4s)")
	flags.StringVar(&cfg.Lab.Plugin, "plugin", "", "another build of the plugin")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *only != "" {
		cfg.Only = strings.Split(*only, ",")
	}
	cfg.FewTags = present(filepath.Join(build, "bench", "few-tags"))
	cfg.Untagged = present(filepath.Join(build, "bench", "untagged"))
	out, err := os.Create(filepath.Join(build, "bench.json"))
	if err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	cfg.JSON = out
	return errors.Join(bench.Run(ctx, cfg), out.Close())
}

// present is file, or "" if make bench has not built it.
func present(file string) string {
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return file
}
