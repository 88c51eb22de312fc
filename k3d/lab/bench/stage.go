// SPDX-License-Identifier: BSD-3-Clause

package bench

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"sync"
	"time"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/demo"
)

const (
	// patience bounds what must happen in the end. It is no expectation.
	patience = 2 * time.Minute
	// pollInterval is how often the plugin is asked for its status, by one asker for all that wait: twenty of them
	// would be a load of their own.
	pollInterval = 5 * time.Millisecond
)

// stage is a scene whose nodes are watched.
type stage struct {
	scene *demo.Scene

	mu      sync.Mutex
	nodes   map[string]demo.Node // by sandbox
	changed chan struct{}        // closed at the next look
}

// watchScene asks for the status of all nodes until done is called.
func watchScene(ctx context.Context, scene *demo.Scene) (s *stage, done func()) {
	s = &stage{scene: scene, changed: make(chan struct{})}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for s.look(ctx) {
		}
	}()
	return s, func() { cancel(); <-ended }
}

// look asks once; an unanswered question is asked again.
func (s *stage) look(ctx context.Context) bool {
	if nodes, err := s.scene.Status(ctx); err == nil {
		byID := make(map[string]demo.Node)
		for _, n := range nodes {
			byID[n.SandboxID] = n
		}
		s.mu.Lock()
		s.nodes = byID
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(pollInterval):
		return true
	}
}

// until returns when ok finds the nodes as it wants them. It looks at what was seen after its call.
func (s *stage) until(ctx context.Context, ok func(map[string]demo.Node) bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
		s.mu.Lock()
		found := ok(s.nodes)
		s.mu.Unlock()
		if found {
			return nil
		}
	}
}

// place is where traffic begins or ends.
type place struct {
	addr, addr6 netip.Addr // in the tailnet
	command     func(ctx context.Context, args ...string) (*exec.Cmd, error)
}

func (s *stage) podPlace(id string, addrs []netip.Addr) place {
	p := place{command: func(ctx context.Context, args ...string) (*exec.Cmd, error) {
		return s.scene.Lab.PodCommand(ctx, id, s.scene.Lab.ToolPath(), args...)
	}}
	for _, a := range addrs {
		if a.Is4() {
			p.addr = a
		} else {
			p.addr6 = a
		}
	}
	return p
}

func (s *stage) peerPlace(peer *lab.Peer) place {
	return place{peer.IP4, peer.IP6, func(ctx context.Context, args ...string) (*exec.Cmd, error) {
		return peer.Command(ctx, s.scene.Lab.ToolPath(), args...), nil
	}}
}

// startPeer logs one more stock tailscaled in.
func (s *stage) startPeer(ctx context.Context, name string) (*lab.Peer, error) {
	plane, err := s.scene.Lab.Control(ctx)
	if err != nil {
		return nil, err
	}
	key, err := plane.NewKey(ctx, "tag:k8s-pod")
	if err != nil {
		return nil, fmt.Errorf("getting peer %s a key: %w", name, err)
	}
	return s.scene.Lab.StartPeer(ctx, lab.PeerConfig{Name: name, LoginServer: plane.ControlURL, AuthKey: key})
}
