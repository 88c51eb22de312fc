// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"tailscale-nri/k3d/lab/kube"
)

const clusterUsage = `lab cluster COMMAND
  up                 end what is there and start anew: two nodes of Kubernetes, a tailnet
  kubectl ARG...     kubectl, as the cluster's administrator
  down               end it and remove all that it made`

// cluster brings a Kubernetes cluster up, down, or under kubectl.
func cluster(ctx context.Context, args []string) error {
	cfg := kube.Config{Lab: config()}
	if len(args) == 0 {
		return errors.New(clusterUsage)
	}
	switch args[0] {
	case "up":
		return clusterUp(ctx, cfg)
	case "down":
		return kube.Down(cfg)
	case "kubectl":
		running, err := kube.Open(cfg)
		if err != nil {
			return err
		}
		defer running.Close()
		cmd := running.KubectlCommand(ctx, args[1:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		return cmd.Run()
	}
	return fmt.Errorf("unknown command %q\n%s", args[0], clusterUsage)
}

// clusterUp leaves the cluster running.
func clusterUp(ctx context.Context, cfg kube.Config) error {
	running, err := kube.Up(ctx, cfg)
	if err != nil {
		return err
	}
	plane, err := running.Lab.StartControl(ctx)
	if err != nil {
		return errors.Join(err, running.Down())
	}
	build, err := cfg.Lab.BuildDir()
	if err != nil {
		return errors.Join(err, running.Down())
	}
	fmt.Printf("The cluster is up; make cluster-down ends it. To use it:\n\n"+
		"  alias kubectl='%s%s cluster kubectl'\n\n"+
		"Its tailnet: TS_LOGIN_SERVER=%s TS_API_URL=%s\n"+
		"             TS_OAUTH_CLIENT_ID=%s TS_OAUTH_CLIENT_SECRET=%s\n",
		labVars(), filepath.Join(cmp.Or(cfg.Lab.Build, build), "bin", "lab"),
		plane.ControlURL, plane.APIURL, plane.OAuthClientID, plane.OAuthClientSecret)
	return running.Close()
}

// labVars are those of the lab's variables that are set, to be typed before its command.
func labVars() (vars string) {
	for _, key := range []string{"LAB_NAME", "LAB_DIR", "LAB_BUILD"} {
		if value := os.Getenv(key); value != "" {
			vars += key + "=" + value + " "
		}
	}
	return vars
}
