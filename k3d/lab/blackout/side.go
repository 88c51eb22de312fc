// SPDX-License-Identifier: BSD-3-Clause

package blackout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/internal/nsthread"
	"tailscale-nri/k3d/lab/internal/wait"
	"tailscale-nri/k3d/lab/scene"
)

// nodes are those of one side, and the processes that serve them.
type nodes interface {
	// join makes one more.
	join(ctx context.Context) (place, error)
	// restart ends the serving processes with sig and starts them again at once.
	restart(ctx context.Context, sig unix.Signal) error
	// restartRuntime kills containerd and starts it again.
	restartRuntime(ctx context.Context) error
	// pids are the serving processes.
	pids() []int
	// settled returns when all that follows a restart, apart from traffic, is over.
	settled(ctx context.Context) error
}

// side is one of the two that are compared, on a lab of its own.
type side struct {
	prefix string // of its figures' names
	scene  *scene.Scene
	peer   place
	nodes  nodes
	places []place
}

// openSide builds a lab with a peer, without nodes.
func openSide(ctx context.Context, prefix string, cfg lab.Config) (_ *side, err error) {
	scene, err := scene.Open(ctx, scene.Config{Lab: cfg})
	if err != nil {
		return nil, err
	}
	s := &side{prefix: prefix, scene: scene}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if err := scene.StartPeer(ctx); err != nil {
		return nil, err
	}
	s.peer = place{name: "peer", addr: scene.Peer.IP4}
	s.peer.ns, err = nsthread.OpenNetNS(scene.Peer.Process().PID())
	return s, err
}

// openOurs has the plugin running and registered.
func openOurs(ctx context.Context, cfg lab.Config) (*side, error) {
	s, err := openSide(ctx, "", cfg)
	if err != nil {
		return nil, err
	}
	s.nodes = &ours{scene: s.scene, registered: 1}
	err = s.scene.StartPlugin()
	if err == nil {
		err = s.scene.Registered(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func openStock(ctx context.Context, cfg lab.Config) (*side, error) {
	s, err := openSide(ctx, "stock_", cfg)
	if err == nil {
		s.nodes = &stock{scene: s.scene}
	}
	return s, err
}

// close removes the side. Its lab goes with all that runs in it.
func (s *side) close() error {
	for _, p := range append(s.places, s.peer) {
		p.ns.Close()
	}
	return s.scene.Close(context.Background())
}

// keepLog copies the plugin's log, over all its starts, to a directory.
func (s *side) keepLog(dir string) error {
	text, err := os.ReadFile(s.scene.Plugin.LogPath())
	if err != nil {
		return fmt.Errorf("reading the plugin's log: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making a place for the plugin's log: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, "plugin.log"), text, 0o644)
}

// grow adds nodes until there are enough, and returns when the peer has a direct path to each: a path by way of DERP is
// another figure.
func (s *side) grow(ctx context.Context, sc scale) error {
	for len(s.places) < sc.pods {
		p, err := s.nodes.join(ctx)
		if err != nil {
			return err
		}
		s.places = append(s.places, p)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	t, err := openTraffic(ctx, s.peer, s.places, sc.every)
	if err != nil {
		return err
	}
	defer t.close()
	return wait.Until(ctx, pollInterval, s.allDirect)
}

// allDirect is an error if the peer has no direct path to a node.
func (s *side) allDirect(ctx context.Context) error {
	out, err := s.scene.Peer.Tailscale(ctx, "status", "--json")
	if err != nil {
		return err
	}
	var status struct {
		Peer map[string]struct {
			CurAddr      string
			TailscaleIPs []string
		}
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		return fmt.Errorf("reading the peer's status: %w", err)
	}
	direct := map[string]bool{}
	for _, p := range status.Peer {
		for _, ip := range p.TailscaleIPs {
			direct[ip] = p.CurAddr != ""
		}
	}
	for _, p := range s.places {
		if !direct[p.addr.String()] {
			return fmt.Errorf("expected the peer to have a direct path to %s", p.name)
		}
	}
	return nil
}

// outage takes the address of control plane, DERP and STUN away, or gives it back. The link between node and peer
// stays.
func (s *side) outage(ctx context.Context, away bool) error {
	verb := "add"
	if away {
		verb = "del"
	}
	addrs := []string{lab.NetIP4 + "/24"}
	if _, err := os.Stat("/proc/sys/net/ipv6"); err == nil {
		addrs = append(addrs, lab.NetIP6+"/64")
	}
	for _, addr := range addrs {
		out, err := s.scene.Lab.NetCommand(ctx, "ip", "address", verb, addr, "dev", "lab0").CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip address %s %s: %w: %s", verb, addr, err, out)
		}
	}
	return nil
}
