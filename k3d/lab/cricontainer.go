// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"bytes"
	"context"
	"fmt"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ContainerSpec is a container of a pod.
type ContainerSpec struct {
	Name  string
	Image string            // "" means ToolImage
	Args  []string          // instead of the image's own
	Env   map[string]string // in addition to the image's own
	// Annotations are those that a kubelet gives the container.
	Annotations map[string]string
	Mounts      map[string]string // file or directory of this machine by its path in the container, read-only
	User        int64             // that runs the program; 0 is root
}

// RunContainer makes a container in a pod, starts it and returns its ID.
func (c *CRI) RunContainer(ctx context.Context, podID string, spec ContainerSpec) (string, error) {
	id, err := c.CreateContainer(ctx, podID, spec)
	if err != nil {
		return "", err
	}
	return id, c.StartContainer(ctx, id)
}

// CreateContainer makes a container in a pod and returns its ID.
func (c *CRI) CreateContainer(ctx context.Context, podID string, spec ContainerSpec) (string, error) {
	pod, err := c.PodStatus(ctx, podID)
	if err != nil {
		return "", err
	}
	sandbox := c.config(pod.Spec)
	made, err := c.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: podID, SandboxConfig: sandbox, Config: spec.config(sandbox),
	})
	if err != nil {
		return "", fmt.Errorf("creating container %s: %w", spec.Name, err)
	}
	return made.ContainerId, nil
}

// StartContainer starts a container that CreateContainer has made.
func (c *CRI) StartContainer(ctx context.Context, id string) error {
	if _, err := c.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id}); err != nil {
		return fmt.Errorf("starting container %s: %w", id, err)
	}
	return nil
}

func (s ContainerSpec) config(sandbox *cri.PodSandboxConfig) *cri.ContainerConfig {
	if s.Image == "" {
		s.Image = ToolImage
	}
	labels := map[string]string{labelContainer: s.Name}
	for _, key := range []string{labelName, labelNamespace, labelUID} {
		labels[key] = sandbox.Labels[key]
	}
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: s.Name}, Image: &cri.ImageSpec{Image: s.Image},
		Args: s.Args, Labels: labels, Annotations: s.Annotations, LogPath: s.Name + ".log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: sandbox.Linux.SecurityContext.NamespaceOptions,
		}},
	}
	if s.User != 0 {
		config.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: s.User}
	}
	for at, path := range s.Mounts {
		config.Mounts = append(config.Mounts, &cri.Mount{ContainerPath: at, HostPath: path, Readonly: true})
	}
	for key, value := range s.Env {
		config.Envs = append(config.Envs, &cri.KeyValue{Key: key, Value: []byte(value)})
	}
	return config
}

// Started is when each container of a pod was started last, by its name.
func (c *CRI) Started(ctx context.Context, podID string) (map[string]time.Time, error) {
	list, err := c.runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: podID}})
	if err != nil {
		return nil, fmt.Errorf("listing the containers of pod %s: %w", podID, err)
	}
	started := map[string]time.Time{}
	for _, container := range list.Containers {
		answer, err := c.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: container.Id})
		if err != nil {
			return nil, fmt.Errorf("asking for container %s: %w", container.Id, err)
		}
		if at := answer.Status.StartedAt; at > 0 {
			started[container.Metadata.Name] = time.Unix(0, at)
		}
	}
	return started, nil
}

// StopContainer ends a container; its process has grace seconds between TERM and KILL.
func (c *CRI) StopContainer(ctx context.Context, id string, grace int64) error {
	_, err := c.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: grace})
	if err != nil {
		return fmt.Errorf("stopping container %s: %w", id, err)
	}
	return nil
}

// Exec runs a command in a container to its end and returns what it wrote to standard output. An exit code other
// than 0 is an error that holds its standard error.
func (c *CRI) Exec(ctx context.Context, containerID string, cmd ...string) (string, error) {
	answer, err := c.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: containerID, Cmd: cmd})
	if err != nil {
		return "", fmt.Errorf("executing %q: %w", cmd, err)
	}
	if answer.ExitCode != 0 {
		return string(answer.Stdout), fmt.Errorf("executing %q: exit code %d: %s", cmd, answer.ExitCode,
			bytes.TrimSpace(answer.Stderr))
	}
	return string(answer.Stdout), nil
}
