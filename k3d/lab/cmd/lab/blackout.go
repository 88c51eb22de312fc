// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"tailscale-nri/k3d/lab/blackout"
)

// measureGaps measures on two labs of its own and writes a table, and a line of JSON for each figure.
func measureGaps(ctx context.Context, args []string) error {
	cfg := blackout.Config{Lab: config(), Table: os.Stdout, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	cfg.Lab.Name = cmp.Or(cfg.Lab.Name, "tsnri-blackout")
	cfg.Lab.Logger = nil
	flags := flag.NewFlagSet("blackout", flag.ContinueOnError)
	flags.IntVar(&cfg.Pods, "pods", 0, "the greater number of pods; the other is 1 (50)")
	flags.IntVar(&cfg.Rounds, "rounds", 0, "rounds of each event (5 with one pod, 3 with many)")
	flags.DurationVar(&cfg.Every, "every", 0, "time between two packets of a flow with many pods (20ms)")
	only := flags.String("events", "", "events, comma separated: kill9, term, containerd, control (all)")
	flags.BoolVar(&cfg.OursOnly, "ours-only", false, "leave the stock tailscaleds out")
	flags.StringVar(&cfg.Logs, "logs", "", "directory that the plugin's log is copied to in the end; LOG_LEVEL=debug makes it long")
	flags.StringVar(&cfg.Lab.Plugin, "plugin", "", "another build of the plugin")
	file := flags.String("json", "blackout.json", "where the figures go")
	if err := flags.Parse(args); err != nil {
		return err
	}
	cfg.ManyRounds = cfg.Rounds
	if *only != "" {
		cfg.Events = strings.Split(*only, ",")
	}
	out, err := os.Create(*file)
	if err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	cfg.JSON = out
	return errors.Join(blackout.Run(ctx, cfg), out.Close())
}
