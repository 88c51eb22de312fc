// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/internal/quantile"
	"tailscale-nri/k3d/lab/kube"
	"tailscale-nri/k3d/lab/kube/install"
)

const clusterUsage = `lab cluster COMMAND
  up                 end what is there and start two nodes of Kubernetes, a tailnet with a peer, the plugin deployed
  kubectl ARG...     kubectl, as the cluster's administrator
  starts [-pods N] [-node n1|n2]
                     measure how long pods take to start, with the annotation and without it, in turns
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
	case "kubectl", "starts":
		running, err := kube.Open(cfg)
		if err != nil {
			return err
		}
		defer running.Close()
		if args[0] == "starts" {
			return measureStarts(ctx, running, args[1:])
		}
		cmd := running.KubectlCommand(ctx, args[1:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		return cmd.Run()
	}
	return fmt.Errorf("unknown command %q\n%s", args[0], clusterUsage)
}

// clusterUp leaves the cluster running.
func clusterUp(ctx context.Context, cfg kube.Config) error {
	deploy, err := filepath.Abs("deploy")
	if err != nil {
		return err
	}
	if _, err := os.Stat(deploy); err != nil {
		return fmt.Errorf("looking for the manifests: %w; run it in the project's directory", err)
	}
	running, err := kube.Up(ctx, cfg)
	if err != nil {
		return err
	}
	if err := installTailnet(ctx, running, deploy); err != nil {
		return errors.Join(err, running.Down())
	}
	binary, err := os.Executable()
	if err != nil {
		return errors.Join(err, running.Down())
	}
	fmt.Printf(clusterHints, labVars(), binary)
	return running.Close()
}

const clusterHints = `The cluster is up, with tailscale-nri on its two nodes; make cluster-down ends it. To use it:

  alias kubectl='%[1]s%[2]s cluster kubectl'
  kubectl get pods -A -o wide
  kubectl run web --image=tailscale-nri.test/labtool:1 --image-pull-policy=Never --annotations=tailscale.com/enabled=true
  make kubectl-plugin; PATH=$PWD/.build/bin:$PATH; kubectl tailscale-nri status     # of both nodes
  %[1]s%[2]s devices                             # what the tailnet says
  %[1]s%[2]s exec peer tailscale status          # what a peer says
  %[1]s%[2]s exec peer curl http://ADDRESS:8080  # the pod by its address: the lab has no DNS server

The nodes have an installation each, which differ; k3d/lab/README.md says how, and how to break things.
`

// installTailnet gives a cluster its tailnet, with a peer, and deploys the plugin.
func installTailnet(ctx context.Context, running *kube.Cluster, deploy string) error {
	plane, err := running.Lab.StartControl(ctx)
	if err != nil {
		return err
	}
	key, err := plane.NewKey(ctx, "tag:k8s-pod")
	if err != nil {
		return err
	}
	if _, err := running.Lab.StartPeer(ctx, lab.PeerConfig{LoginServer: plane.ControlURL, AuthKey: key}); err != nil {
		return err
	}
	return install.Install{Cluster: running, Plane: plane, Deploy: deploy}.Apply(ctx)
}

// labVars are the cluster's name and those of the lab's other variables that are set, to be typed before its command.
func labVars() string {
	vars := "LAB_NAME=" + cmp.Or(os.Getenv("LAB_NAME"), kube.DefaultName) + " "
	for _, key := range []string{"LAB_DIR", "LAB_BUILD"} {
		if value := os.Getenv(key); value != "" {
			vars += key + "=" + value + " "
		}
	}
	return vars
}

// measureStarts prints percentiles.
func measureStarts(ctx context.Context, running *kube.Cluster, args []string) error {
	flags := flag.NewFlagSet("cluster starts", flag.ContinueOnError)
	pods := flags.Int("pods", 50, "how many of each kind")
	node := flags.String("node", "n1", "the node to run them on")
	if err := flags.Parse(args); err != nil {
		return err
	}
	with, without, err := running.MeasureStarts(ctx, *node, *pods, map[string]string{"tailscale.com/enabled": "true"})
	if err != nil {
		return err
	}
	row := func(name string, starts []kube.Start, of func(kube.Start) time.Duration) string {
		var took []time.Duration
		for _, s := range starts {
			took = append(took, of(s))
		}
		at := func(q float64) time.Duration { return quantile.Of(took, q).Round(time.Millisecond) }
		return fmt.Sprintf("%s\t%v\t%v\t%v\t%v", name, at(0), at(0.5), at(0.95), at(1))
	}
	container := func(s kube.Start) time.Duration { return s.Container }
	ready := func(s kube.Start) time.Duration { return s.Ready }
	return table("FROM THE API SERVER TO\tMIN\tP50\tP95\tMAX", []string{
		row("container started, without", without, container), row("container started, with", with, container),
		row("Ready, without", without, ready), row("Ready, with", with, ready),
	})
}
