// SPDX-License-Identifier: BSD-3-Clause

package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"

	"tailscale-nri/k3d/lab"
)

// KubectlCommand is kubectl as the cluster's administrator, where the API server can be reached. It sees this machine's
// files. It ends with ctx.
func (c *Cluster) KubectlCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := c.Lab.NetCommand(ctx, c.bin("kubectl"), args...)
	cmd.Env = append(cmd.Env, c.ClientEnv()...)
	return cmd
}

// ClientEnv is for programs that call the API server as kubectl does. What they keep lies in the lab's directory, and
// what their user prefers elsewhere (~/.kube/kuberc) does not count.
func (c *Cluster) ClientEnv() []string {
	return []string{"KUBECONFIG=" + c.Kubeconfig(), "KUBECACHEDIR=" + c.path("cache"), "KUBERC=off"}
}

// Kubeconfig is the administrator's file; it leads to the API server in the lab's network namespace "net".
func (c *Cluster) Kubeconfig() string { return c.path("admin.kubeconfig") }

// Kubectl runs kubectl to its end and returns its standard output. An error holds what it said.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return lab.Run(c.KubectlCommand(ctx, args...))
}

// Apply applies manifests, in YAML or JSON.
func (c *Cluster) Apply(ctx context.Context, manifests string) error {
	cmd := c.KubectlCommand(ctx, "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifests)
	_, err := lab.Run(cmd)
	return err
}

// Get decodes what the API server says of objects, as kubectl get takes them, into out.
func (c *Cluster) Get(ctx context.Context, out any, args ...string) error {
	answer, err := c.Kubectl(ctx, append([]string{"get", "-o", "json"}, args...)...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(answer), out); err != nil {
		return fmt.Errorf("reading the answer to kubectl get %s: %w", strings.Join(args, " "), err)
	}
	return nil
}
