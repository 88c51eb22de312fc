// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"tailscale-nri/k3d/lab/demo"
	"tailscale-nri/k3d/lab/scene"
)

// play runs the demo, which KEEP=1 leaves up, or ends it with the argument down.
func play(ctx context.Context, args []string) error {
	cfg, err := demoConfig()
	switch {
	case err != nil:
		return err
	case slices.Equal(args, []string{"down"}):
		return scene.End(ctx, cfg.Config)
	case len(args) > 0:
		return fmt.Errorf("unknown argument %q: lab demo takes none, or down", args)
	}
	keep := os.Getenv("KEEP")
	return demo.Run(ctx, cfg, keep != "" && keep != "0")
}

// demoConfig takes the user's own tailnet if there are credentials for one.
func demoConfig() (demo.Config, error) {
	screen := demo.NewScreen(os.Stdout)
	cfg := demo.Config{Config: scene.Config{Lab: config(), Note: screen.Note}, Screen: screen}
	cfg.Lab.Logger = nil // the screen says what counts
	if tags := os.Getenv("TS_TAGS"); tags != "" {
		cfg.Tags = strings.Split(strings.ReplaceAll(tags, " ", ""), ",")
	}
	id, secret := os.Getenv("TS_OAUTH_CLIENT_ID"), os.Getenv("TS_OAUTH_CLIENT_SECRET")
	switch {
	case id == "" && secret == "":
		return cfg, nil
	case id == "" || secret == "":
		return cfg, errors.New("one of TS_OAUTH_CLIENT_ID and TS_OAUTH_CLIENT_SECRET is set: set both for a tailnet of yours, neither for the lab's")
	}
	cfg.Own = &scene.OwnTailnet{
		ClientID: strings.TrimSpace(id), ClientSecret: strings.TrimSpace(secret),
		APIURL: os.Getenv("TS_API_URL"), LoginServer: os.Getenv("TS_LOGIN_SERVER"),
	}
	return cfg, nil
}
