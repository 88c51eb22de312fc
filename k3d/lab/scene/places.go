// SPDX-License-Identifier: BSD-3-Clause

package scene

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
)

// Place is where traffic begins: a pod, the peer or the node.
type Place struct {
	Name     string
	IP4, IP6 netip.Addr // in the tailnet
	tool     string     // the path of labtool there
	// Command is a program of this machine, to be run there.
	Command func(ctx context.Context, program string, args ...string) (*exec.Cmd, error)
}

// InPod is a pod as a place.
func (s *Scene) InPod(pod *Pod) Place {
	return Place{pod.Spec.Name, pod.IP4(), pod.IP6(), s.Lab.ToolPath(), func(ctx context.Context, program string, args ...string) (*exec.Cmd, error) {
		return s.Lab.PodCommand(ctx, pod.ID, program, args...)
	}}
}

// AtPeer is the peer as a place.
func (s *Scene) AtPeer() Place {
	return Place{"peer", s.Peer.IP4, s.Peer.IP6, s.Lab.ToolPath(), func(ctx context.Context, program string, args ...string) (*exec.Cmd, error) {
		return s.Peer.Command(ctx, program, args...), nil
	}}
}

// OnNode is the node as a place; it has no tailnet addresses.
func (s *Scene) OnNode() Place {
	return Place{Name: "node", tool: s.Lab.ToolPath(), Command: func(ctx context.Context, program string, args ...string) (*exec.Cmd, error) {
		return s.Lab.NodeCommand(ctx, program, args...), nil
	}}
}

// Own is the place's address in the family of to.
func (p Place) Own(to netip.Addr) netip.Addr {
	if to.Is4() {
		return p.IP4
	}
	return p.IP6
}

// Tool runs labtool in there to its end and returns what it printed.
func (p Place) Tool(ctx context.Context, args ...string) (string, error) {
	return p.Run(ctx, p.tool, args...)
}

// Run runs a program of this machine in there to its end and returns what it printed.
func (p Place) Run(ctx context.Context, program string, args ...string) (string, error) {
	cmd, err := p.Command(ctx, program, args...)
	if err != nil {
		return "", err
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Page is what labtool's HTTP server says: its own name and addresses, and who asks.
type Page struct {
	Host   string              `json:"host"`
	Local  netip.AddrPort      `json:"local"`
	Remote netip.AddrPort      `json:"remote"`
	Addrs  map[string][]string `json:"addrs"` // by interface
}

// Fetch fetches the page of what serves at an address.
func (s *Scene) Fetch(ctx context.Context, from Place, at netip.Addr) (page Page, err error) {
	url := "http://" + netip.AddrPortFrom(at, 8080).String() + "/"
	out, err := from.Tool(ctx, "get", "-timeout", askPatience, url)
	if err != nil {
		return page, fmt.Errorf("%s fetches %s: expected a page: %w", from.Name, url, err)
	}
	if err := json.Unmarshal([]byte(out), &page); err != nil {
		return page, fmt.Errorf("%s fetches %s: expected labtool's page, saw %q: %w", from.Name, url, out, err)
	}
	return page, nil
}

// FetchAs fetches the page of a pod at one of its addresses, and checks that the pod saw the client under its own.
func (s *Scene) FetchAs(ctx context.Context, from Place, self netip.Addr, pod *Pod, at netip.Addr) error {
	page, err := s.Fetch(ctx, from, at)
	if err != nil {
		return err
	}
	if page.Host != pod.Spec.Name || page.Local.Addr().Unmap() != at || page.Remote.Addr().Unmap() != self {
		return fmt.Errorf("%s (%v) fetches from %s at %v: expected a page from %[3]s at %[4]v to %[2]v, saw one from %[5]s at %[6]v to %[7]v",
			from.Name, self, pod.Spec.Name, at, page.Host, page.Local.Addr(), page.Remote.Addr())
	}
	return nil
}
