// SPDX-License-Identifier: BSD-3-Clause

package scene

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/internal/wait"
)

// Config says what the scene is built on.
type Config struct {
	Lab lab.Config
	// Own is a tailnet of the user's; nil means the lab's.
	Own *OwnTailnet
	// Tags are those of the pods and of the peer. None means tag:k8s-pod.
	Tags []string
	// Note gets a line for what takes long, or is left; nil gets none.
	Note func(format string, args ...any)
}

// Scene is a running lab with a tailnet, and what was started on it. Its methods may be called concurrently, but for
// those that start or end the plugin.
type Scene struct {
	Lab    *lab.Lab
	Peer   *lab.Peer    // nil until StartPeer
	Plugin *lab.Process // the one last started, nil until StartPlugin

	cfg     Config
	tailnet tailnet
	logMark int64 // size of the plugin's log when it was last started

	mu     sync.Mutex
	pods   []*Pod   // those that RemovePod has not removed
	nodes  []string // IDs of all devices that were let in
	peerID string
}

const (
	// ClusterName is the plugin's CLUSTER_NAME.
	ClusterName = "demo"
	// peerName is the peer's name in the tailnet and in the lab.
	peerName = "demopeer"
	// patience bounds what must happen in the end. It is not an expectation. The plugin waits for a minute before it gives
	// up a pod that went without a runtime event.
	patience = 2 * time.Minute
	// pollInterval is how often to poll.
	pollInterval = 10 * time.Millisecond
)

// Open builds the lab and its tailnet. The plugin and the peer are started apart. When it fails, nothing remains.
func Open(ctx context.Context, cfg Config) (*Scene, error) {
	if len(cfg.Tags) == 0 {
		cfg.Tags = []string{"tag:k8s-pod"}
	}
	cfg.Lab.Uplink = cfg.Own != nil
	running, err := lab.Up(ctx, cfg.Lab)
	if err != nil {
		return nil, err
	}
	s := &Scene{Lab: running, cfg: cfg}
	if cfg.Own != nil {
		s.tailnet, err = newOwnTailnet(*cfg.Own, cfg.Tags)
	} else {
		s.tailnet, err = newLabTailnet(ctx, running)
	}
	if err != nil {
		return nil, errors.Join(err, running.Down())
	}
	return s, nil
}

// Close ends the scene. In the user's own tailnet no device of ours is left; the lab's ends with the lab.
func (s *Scene) Close(ctx context.Context) error {
	var err error
	if s.cfg.Own != nil {
		err = s.leave(ctx)
	}
	return errors.Join(err, s.Lab.Down())
}

// leave removes the pods as a cluster does, and then each device that is still there.
func (s *Scene) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	s.note("removing the demo's devices from your tailnet")
	var errs []error
	for _, pod := range s.podList() {
		errs = append(errs, s.RemovePod(ctx, pod))
	}
	for _, id := range s.nodeIDs() {
		// The plugin deletes the pods' devices too; either may be first.
		if err := s.tailnet.delete(ctx, id); err != nil {
			errs = append(errs, fmt.Errorf("delete device %s by hand: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

func (s *Scene) note(format string, args ...any) {
	if s.cfg.Note != nil {
		s.cfg.Note(format, args...)
	}
}

// TailnetName says which tailnet it is, for who watches.
func (s *Scene) TailnetName() string { return s.tailnet.name() }

func (s *Scene) podList() []*Pod {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.pods)
}

func (s *Scene) nodeIDs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.nodes)
}

// letIn remembers a device, for it to be deleted in the end.
func (s *Scene) letIn(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id != "" && !slices.Contains(s.nodes, id) {
		s.nodes = append(s.nodes, id)
	}
}

// StartPeer starts a stock tailscaled and logs it in.
func (s *Scene) StartPeer(ctx context.Context) error {
	key, err := s.tailnet.peerKey(ctx, s.cfg.Tags)
	if err != nil {
		return fmt.Errorf("getting the peer a key: %w", err)
	}
	cfg := lab.PeerConfig{Name: peerName, LoginServer: s.tailnet.loginServer(), AuthKey: key}
	if s.Peer, err = s.Lab.StartPeer(ctx, cfg); err != nil {
		return err
	}
	view, err := s.peerView(ctx)
	if err != nil {
		return err
	}
	s.peerID = view.Self.ID
	s.letIn(view.Self.ID)
	return nil
}

// StartPlugin starts the plugin as a process in the node, with env ("KEY=value") over what leads it into the tailnet.
func (s *Scene) StartPlugin(env ...string) (err error) {
	s.logMark = logSize(s.pluginLog())
	s.Plugin, err = s.Lab.StartPlugin(append(s.pluginEnv(), env...))
	return err
}

// PluginPath is the plugin's binary.
func (s *Scene) PluginPath() (string, error) { return s.cfg.Lab.PluginPath() }

// Doctor runs the plugin's doctor in the node, with the environment that the plugin was started with, as kubectl exec
// does. Its error has what was printed.
func (s *Scene) Doctor(ctx context.Context, env []string, args ...string) (string, error) {
	binary, err := s.PluginPath()
	if err != nil {
		return "", err
	}
	cmd := s.Lab.NodeCommand(ctx, binary, append([]string{"doctor"}, args...)...)
	cmd.Env = append(append(cmd.Env, s.pluginEnv()...), env...)
	return lab.Run(cmd)
}

// pluginEnv holds each variable that leads the plugin, so that none of the caller's own decides.
func (s *Scene) pluginEnv() []string {
	return append([]string{
		"TS_AUTHKEY=", "TS_ID_TOKEN_FILE=", "TS_CONFIG_DIR=", "TS_POLICY_FILE=", "TS_STATE_DIR=", "TS_STATUS_SOCKET=", "NRI_SOCKET=", "LOG_FORMAT=",
		"POD_UID=", "HTTPS_PROXY=", "HTTP_PROXY=", "NO_PROXY=", "https_proxy=", "http_proxy=", "no_proxy=",
		"CLUSTER_NAME=" + ClusterName,
		"TS_TAGS=" + strings.Join(s.cfg.Tags, ","),
	}, s.tailnet.env()...)
}

// Registered returns when the plugin that was last started is registered with containerd.
func (s *Scene) Registered(ctx context.Context) error {
	return s.AwaitLog(ctx, "registered with the container runtime")
}

// askPatience is how long a tool waits for its first answer. Two nodes that begin a handshake at the same time wait 5 s
// for their second handshake (WireGuard), and that is not a failure.
const askPatience = "20s"

// eventually waits for check to return nil, or for ctx, the patience or what it is about to end.
func eventually(ctx context.Context, ended <-chan struct{}, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return wait.UntilEnd(ctx, pollInterval, ended, check)
}
