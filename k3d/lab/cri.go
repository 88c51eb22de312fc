// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CRI asks containerd for pods and containers as a kubelet does.
type CRI struct {
	cfg     Config
	conn    *grpc.ClientConn
	runtime cri.RuntimeServiceClient
}

func (c Config) dialCRI(node NodeConfig) (*CRI, error) {
	socket := c.path(node.Name, "run", "containerd", "containerd.sock")
	// A refused connection is the usual state while containerd restarts: ask again soon.
	retry := grpc.ConnectParams{MinConnectTimeout: time.Second}
	retry.Backoff.BaseDelay, retry.Backoff.Multiplier, retry.Backoff.MaxDelay = pollInterval, 1, pollInterval
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(retry))
	if err != nil {
		return nil, fmt.Errorf("dialing containerd: %w", err)
	}
	return &CRI{cfg: c, conn: conn, runtime: cri.NewRuntimeServiceClient(conn)}, nil
}

func (c *CRI) close() { c.conn.Close() }

// ready is nil when containerd has its runtime and its pod network.
func (c *CRI) ready(ctx context.Context) error {
	status, err := c.runtime.Status(ctx, &cri.StatusRequest{})
	if err != nil {
		return err
	}
	for _, cond := range status.GetStatus().GetConditions() {
		// There are more, such as "no deprecation warnings", which is false on cgroup v1.
		if !cond.Status && (cond.Type == cri.RuntimeReady || cond.Type == cri.NetworkReady) {
			return fmt.Errorf("%s is false: %s", cond.Type, cond.Message)
		}
	}
	return nil
}

// PodSpec is what a kubelet would derive from a pod's manifest.
type PodSpec struct {
	Name        string
	Namespace   string // "" means "default"
	UID         string // "" is derived from namespace and name
	Annotations map[string]string
	Labels      map[string]string // in addition to the kubelet's
	HostNetwork bool
	// RuntimeHandler is that of the pod's RuntimeClass. "" is the default one, and OtherHandler the only other.
	RuntimeHandler string
	// UserNS gives the pod a user namespace (hostUsers: false), whose root is UserNSRoot on the machine.
	UserNS bool
	// SharePID gives the pod's containers one pid namespace (shareProcessNamespace).
	SharePID bool
}

// UserNSRoot is the first of 65536 users of a pod with a user namespace.
const UserNSRoot = 131072

// OtherHandler is a runtime handler that is runc too, under another name.
const OtherHandler = "other"

// The labels by which a kubelet finds its pods again.
const (
	labelName      = "io.kubernetes.pod.name"
	labelNamespace = "io.kubernetes.pod.namespace"
	labelUID       = "io.kubernetes.pod.uid"
	labelContainer = "io.kubernetes.container.name"
)

func (p PodSpec) withDefaults() PodSpec {
	p.Namespace = cmp.Or(p.Namespace, "default")
	p.UID = cmp.Or(p.UID, "uid-"+p.Namespace+"-"+p.Name)
	return p
}

func (p PodSpec) labels() map[string]string {
	labels := map[string]string{labelName: p.Name, labelNamespace: p.Namespace, labelUID: p.UID}
	maps.Copy(labels, p.Labels)
	return labels
}

// config is the sandbox's configuration, the same at each call.
func (c *CRI) config(p PodSpec) *cri.PodSandboxConfig {
	config := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: p.Name, Namespace: p.Namespace, Uid: p.UID},
		Hostname:     p.Name,
		LogDirectory: c.logDir(p.UID),
		Labels:       p.labels(),
		Annotations:  p.Annotations,
		DnsConfig:    &cri.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"svc.cluster.local"}},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: "/" + c.cfg.Name,
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
			},
		},
	}
	if p.UserNS {
		ids := []*cri.IDMapping{{HostId: UserNSRoot, ContainerId: 0, Length: 65536}}
		config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids}
	}
	if p.SharePID {
		config.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	}
	if p.HostNetwork {
		config.Hostname = ""
		config.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	}
	return config
}

func (c *CRI) logDir(uid string) string { return c.cfg.path("log", "pods", uid) }

// RunPod makes and starts a pod sandbox and returns its ID. The error of an NRI plugin's RunPodSandbox is part of its
// own.
func (c *CRI) RunPod(ctx context.Context, spec PodSpec) (string, error) {
	spec = spec.withDefaults()
	if err := os.MkdirAll(c.logDir(spec.UID), 0o755); err != nil {
		return "", fmt.Errorf("making the log directory of pod %s: %w", spec.Name, err)
	}
	answer, err := c.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: c.config(spec), RuntimeHandler: spec.RuntimeHandler})
	if err != nil {
		return "", fmt.Errorf("running pod %s/%s: %w", spec.Namespace, spec.Name, err)
	}
	return answer.PodSandboxId, nil
}

// StopPod ends a pod's containers and its network. Stopping again is not an error.
func (c *CRI) StopPod(ctx context.Context, id string) error {
	if _, err := c.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("stopping pod %s: %w", id, err)
	}
	return nil
}

// RemovePod forgets a stopped pod, as the kubelet's garbage collection does up to a minute after the stop: its containers
// first. containerd 2.4.2 hangs for good if it removes both at once while an NRI plugin registers.
func (c *CRI) RemovePod(ctx context.Context, id string) error {
	containers, err := c.runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: id}})
	if err != nil {
		return fmt.Errorf("listing the containers of pod %s: %w", id, err)
	}
	for _, container := range containers.Containers {
		if _, err := c.runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: container.Id}); err != nil {
			return fmt.Errorf("removing container %s: %w", container.Id, err)
		}
	}
	if _, err := c.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("removing pod %s: %w", id, err)
	}
	return nil
}

// Pod is what containerd says of a pod sandbox.
type Pod struct {
	ID        string
	Spec      PodSpec
	Ready     bool
	CreatedAt time.Time
	IPs       []string // of eth0; PodStatus fills it
	NetNS     string   // as seen inside the node, "" of a stopped or host-network pod; PodStatus fills it
	PID       int      // of the pause process; PodStatus fills it
}

// RemoveNamed stops and removes all sandboxes of a name, as a kubelet does with one that failed on its way: containerd
// may not have been able to clean up behind itself.
func (c *CRI) RemoveNamed(ctx context.Context, name string) error {
	list, err := c.ListPods(ctx)
	for _, pod := range list {
		if pod.Spec.Name == name {
			err = errors.Join(err, c.StopPod(ctx, pod.ID), c.RemovePod(ctx, pod.ID))
		}
	}
	return err
}

// ListPods lists all pod sandboxes, the stopped ones too.
func (c *CRI) ListPods(ctx context.Context) ([]Pod, error) {
	answer, err := c.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return nil, fmt.Errorf("listing pods: %w", err)
	}
	pods := make([]Pod, 0, len(answer.Items))
	for _, p := range answer.Items {
		pods = append(pods, Pod{
			ID: p.Id, Spec: specFrom(p.Metadata, p.Labels, p.Annotations),
			Ready: p.State == cri.PodSandboxState_SANDBOX_READY, CreatedAt: time.Unix(0, p.CreatedAt),
		})
	}
	return pods, nil
}

func specFrom(m *cri.PodSandboxMetadata, labels, annotations map[string]string) PodSpec {
	return PodSpec{Name: m.Name, Namespace: m.Namespace, UID: m.Uid, Labels: labels, Annotations: annotations}
}

// PodStatus says all of one pod.
func (c *CRI) PodStatus(ctx context.Context, id string) (Pod, error) {
	answer, err := c.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	if err != nil {
		return Pod{}, fmt.Errorf("asking for pod %s: %w", id, err)
	}
	s := answer.Status
	pod := Pod{
		ID: s.Id, Spec: specFrom(s.Metadata, s.Labels, s.Annotations),
		Ready: s.State == cri.PodSandboxState_SANDBOX_READY, CreatedAt: time.Unix(0, s.CreatedAt),
	}
	pod.Spec.UserNS = s.GetLinux().GetNamespaces().GetOptions().GetUsernsOptions().GetMode() == cri.NamespaceMode_POD &&
		len(s.GetLinux().GetNamespaces().GetOptions().GetUsernsOptions().GetUids()) > 0
	pod.Spec.SharePID = s.GetLinux().GetNamespaces().GetOptions().GetPid() == cri.NamespaceMode_POD
	pod.Spec.HostNetwork = s.GetLinux().GetNamespaces().GetOptions().GetNetwork() == cri.NamespaceMode_NODE
	if ip := s.GetNetwork().GetIp(); ip != "" {
		pod.IPs = append(pod.IPs, ip)
	}
	for _, more := range s.GetNetwork().GetAdditionalIps() {
		pod.IPs = append(pod.IPs, more.Ip)
	}
	return pod, pod.readInfo(answer.Info["info"])
}

// readInfo takes what CRI itself does not say from containerd's verbose answer.
func (p *Pod) readInfo(info string) error {
	var verbose struct {
		PID         int `json:"pid"`
		RuntimeSpec struct {
			Linux struct {
				Namespaces []struct{ Type, Path string } `json:"namespaces"`
			} `json:"linux"`
		} `json:"runtimeSpec"`
	}
	if err := json.Unmarshal([]byte(info), &verbose); err != nil {
		return fmt.Errorf("reading containerd's answer on pod %s: %w", p.ID, err)
	}
	if !p.Ready {
		return nil
	}
	p.PID = verbose.PID
	for _, ns := range verbose.RuntimeSpec.Linux.Namespaces {
		if ns.Type == "network" {
			p.NetNS = ns.Path
		}
	}
	return nil
}

// LogPath is the file that container name of a pod writes to, in the format of CRI: time, stream, tag, line.
func (c *CRI) LogPath(spec PodSpec, name string) string {
	return filepath.Join(c.logDir(spec.withDefaults().UID), name+".log")
}
