// SPDX-License-Identifier: BSD-3-Clause

package scene

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"tailscale-nri/k3d/lab"
)

// Pod is a pod of the scene.
type Pod struct {
	lab.Pod
	Container string        // runs labtool; "" of a bare sandbox
	CRITook   time.Duration // of the RunPodSandbox call
	Made      time.Time     // when that call had returned

	node Node // as AwaitRunning has found it
}

// FullName is namespace/name.
func (p *Pod) FullName() string { return p.Spec.Namespace + "/" + p.Spec.Name }

// Node is what AwaitRunning has found.
func (p *Pod) Node() Node { return p.node }

// IP4 is the pod's IPv4 address in the tailnet, invalid before AwaitRunning.
func (p *Pod) IP4() netip.Addr { return first(p.node.Addresses, netip.Addr.Is4) }

// IP6 is its IPv6 address there.
func (p *Pod) IP6() netip.Addr { return first(p.node.Addresses, netip.Addr.Is6) }

func first(addrs []netip.Addr, is func(netip.Addr) bool) netip.Addr {
	if i := slices.IndexFunc(addrs, is); i >= 0 {
		return addrs[i]
	}
	return netip.Addr{}
}

// OptIn are the annotations of a pod that wants a node; more is pairs of key and value.
func OptIn(more ...string) map[string]string {
	annotations := map[string]string{"tailscale.com/enabled": "true"}
	for i := 0; i+1 < len(more); i += 2 {
		annotations[more[i]] = more[i+1]
	}
	return annotations
}

// RunPod makes a pod with one container of labtool, as a kubelet would, and returns when that serves.
func (s *Scene) RunPod(ctx context.Context, spec lab.PodSpec) (*Pod, error) {
	pod, err := s.RunSandbox(ctx, spec)
	if err != nil {
		return nil, err
	}
	pod.Container, err = s.Lab.CRI().RunContainer(ctx, pod.ID, lab.ContainerSpec{Name: "tool"})
	if err != nil {
		return nil, err
	}
	return pod, s.awaitServing(ctx, pod)
}

// awaitServing returns when labtool has said for each of its servers that it listens.
func (s *Scene) awaitServing(ctx context.Context, pod *Pod) error {
	file := s.Lab.CRI().LogPath(pod.Spec, "tool")
	return eventually(ctx, nil, func(context.Context) error {
		log, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("reading the container's log: %w", err)
		}
		if !containsAll(string(log), []string{"serving HTTP", "serving echo"}) {
			return fmt.Errorf("pod %s: expected two servers, its log says %q", pod.FullName(), log)
		}
		return nil
	})
}

// RunSandbox makes a pod without containers.
func (s *Scene) RunSandbox(ctx context.Context, spec lab.PodSpec) (*Pod, error) {
	begin := time.Now()
	id, err := s.Lab.CRI().RunPod(ctx, spec)
	made := time.Now()
	if err != nil {
		return nil, err
	}
	status, err := s.Lab.CRI().PodStatus(ctx, id)
	if err != nil {
		return nil, err
	}
	pod := &Pod{Pod: status, CRITook: made.Sub(begin), Made: made}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pods = append(s.pods, pod)
	return pod, nil
}

// RemovePod stops and removes a pod, as a kubelet and its garbage collection do.
func (s *Scene) RemovePod(ctx context.Context, pod *Pod) error {
	if err := s.Lab.CRI().StopPod(ctx, pod.ID); err != nil {
		return err
	}
	if err := s.Lab.CRI().RemovePod(ctx, pod.ID); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pods = slices.DeleteFunc(s.pods, func(p *Pod) bool { return p == pod })
	return nil
}

// FirstPing pings the pod from there until it answers, and returns how long after its RunPodSandbox that was. It waits
// for the node to be Running first, as a user does who reads the address from its status.
func (s *Scene) FirstPing(ctx context.Context, from Place, pod *Pod) (time.Duration, error) {
	if err := s.AwaitRunning(ctx, pod); err != nil {
		return 0, err
	}
	err := eventually(ctx, nil, func(ctx context.Context) error { return s.Ping(ctx, from, pod.IP4()) })
	return time.Since(pod.Made), err
}

// Ping sends one echo request and waits for its answer.
func (s *Scene) Ping(ctx context.Context, from Place, to netip.Addr) error {
	if _, err := from.Tool(ctx, "ping", "-timeout", "1s", to.String()); err != nil {
		return fmt.Errorf("%s pings %s: expected an answer: %w", from.Name, to, err)
	}
	return nil
}
