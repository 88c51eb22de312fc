// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/kubeapi"
	"tailscale-nri/nri-plugin/internal/kubestatus"
	"tailscale-nri/nri-plugin/internal/settings"
)

// kubeStatus shows the state of the pods' nodes in Kubernetes. A nil one does nothing.
type kubeStatus struct{ *kubestatus.Publisher }

// newKubeStatus returns nil if that is not configured, or not possible: the pods still
// get their nodes.
func newKubeStatus(cfg config.Config, log *slog.Logger) *kubeStatus {
	if !cfg.KubeStatus {
		return nil
	}
	in, err := kubeapi.InCluster(os.Getenv, kubeapi.MountDir, "kubernetes-status")
	var client *kubeapi.Client
	if err == nil {
		client, err = kubeapi.New(in)
	}
	if err != nil {
		log.Error("Kubernetes shows nothing of the pods' nodes", "setting", settings.KubeStatus, "err", err)
		return nil
	}
	return &kubeStatus{kubestatus.New(kubestatus.Config{API: client, Host: hostName(cfg), Logger: log, Rates: kubestatus.UsualRates()})}
}

// hostName is the Kubernetes node's name, or the host's own.
func hostName(cfg config.Config) string {
	name, _ := os.Hostname() // "" says nothing wrong
	return cmp.Or(cfg.NodeName, name)
}

// tell is the function for engine.Config.OnChange.
func (k *kubeStatus) tell() func(engine.Change) {
	if k == nil {
		return nil
	}
	return k.Tell
}

// lastWords is how long this process may take at its end for news that the API has not
// heard yet. The nodes are another's by then.
const lastWords = 2 * time.Second

// Run publishes until ctx ends.
func (k *kubeStatus) Run(ctx context.Context) error {
	if k == nil {
		<-ctx.Done()
		return nil
	}
	err := k.Publisher.Run(ctx)
	if errors.Is(context.Cause(ctx), errRestart) {
		return err // a process that is started again waits for this end
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
	defer cancel()
	k.Flush(last)
	return err
}
