// SPDX-License-Identifier: BSD-3-Clause

package scene

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Node is what the plugin says of a pod's node, as far as it counts here.
type Node struct {
	SandboxID string       `json:"sandboxID"`
	Hostname  string       `json:"hostname"`
	State     string       `json:"state"`
	Reason    string       `json:"reason"`
	Addresses []netip.Addr `json:"addresses"` // IPv4 first
	NodeID    string       `json:"nodeID"`
	DNSName   string       `json:"dnsName"`
}

// Status asks the plugin on its socket, which answers sooner than its command line. Pods that should have a node and have
// none are left out.
func (s *Scene) Status(ctx context.Context) ([]Node, error) {
	socket := filepath.Join(s.Lab.NodeRun(), "tailscale-nri", "status.sock")
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://plugin/v1/status", nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking the plugin for its status: %w", err)
	}
	defer res.Body.Close()
	var report struct{ Nodes []Node }
	if err := json.NewDecoder(res.Body).Decode(&report); err != nil {
		return nil, fmt.Errorf("reading the plugin's status: %w", err)
	}
	return slices.DeleteFunc(report.Nodes, func(n Node) bool { return n.State == "NoNode" }), nil
}

// nodeOf returns the node of one sandbox, and false if the plugin has none.
func (s *Scene) nodeOf(ctx context.Context, sandboxID string) (Node, bool, error) {
	nodes, err := s.Status(ctx)
	for _, n := range nodes {
		if n.SandboxID == sandboxID {
			s.letIn(n.NodeID)
			return n, true, nil
		}
	}
	return Node{}, false, err
}

// AwaitNode returns the pod's node once want finds no fault with it.
func (s *Scene) AwaitNode(ctx context.Context, pod *Pod, want func(Node) error) (node Node, err error) {
	err = eventually(ctx, nil, func(ctx context.Context) error {
		var known bool
		node, known, err = s.nodeOf(ctx, pod.ID)
		switch {
		case err != nil:
			return err
		case !known:
			return fmt.Errorf("the plugin knows no node of pod %s", pod.FullName())
		}
		return want(node)
	})
	return node, err
}

// AwaitRunning returns when the pod's node is in the tailnet, and keeps what it is there.
func (s *Scene) AwaitRunning(ctx context.Context, pod *Pod) error {
	node, err := s.AwaitNode(ctx, pod, func(n Node) error {
		if n.State != "Running" || len(n.Addresses) == 0 {
			return fmt.Errorf("node of %s: expected state Running with addresses, saw %s %v: %s", pod.FullName(),
				n.State, n.Addresses, n.Reason)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	pod.node = node
	return nil
}

// Devices are the tailnet's, without the peer.
func (s *Scene) Devices(ctx context.Context) ([]Device, error) {
	all, err := s.tailnet.devices(ctx)
	var devices []Device
	for _, d := range all {
		if d.ID != s.peerID {
			devices = append(devices, d)
		}
	}
	return devices, err
}

func (s *Scene) pluginLog() string { return filepath.Join(s.Lab.Dir(), "log", "plugin.log") }

func logSize(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0 // it was not started yet
	}
	return info.Size()
}

// AwaitLog returns when the plugin has logged a line that holds all of texts since its last start. It fails early when
// the plugin ends.
func (s *Scene) AwaitLog(ctx context.Context, texts ...string) error {
	return s.AwaitLogTimes(ctx, 1, texts...)
}

// AwaitLogTimes is AwaitLog for as many such lines.
func (s *Scene) AwaitLogTimes(ctx context.Context, times int, texts ...string) error {
	return eventually(ctx, s.Plugin.Done(), func(context.Context) error {
		lines, err := s.LogLines(texts...)
		if err == nil && len(lines) < times {
			err = fmt.Errorf("expected %d lines with %q in the plugin's log, saw %d", times, texts, len(lines))
		}
		return err
	})
}

// LogLines are the lines that hold all of texts, of those that the plugin has logged since its last start.
func (s *Scene) LogLines(texts ...string) ([]string, error) {
	file, err := os.Open(s.pluginLog())
	if err != nil {
		return nil, fmt.Errorf("reading the plugin's log: %w", err)
	}
	defer file.Close()
	if _, err := file.Seek(s.logMark, io.SeekStart); err != nil {
		return nil, fmt.Errorf("reading the plugin's log: %w", err)
	}
	text, err := io.ReadAll(file)
	var found []string
	for line := range strings.Lines(string(text)) {
		if containsAll(line, texts) {
			found = append(found, strings.TrimSuffix(line, "\n"))
		}
	}
	return found, err
}

func containsAll(text string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(text, p) {
			return false
		}
	}
	return true
}

// view is the peer's `tailscale status --json`, as far as it counts here.
type view struct {
	Self struct{ ID string }
	Peer map[string]struct{ ID, HostName string }
}

func (s *Scene) peerView(ctx context.Context) (v view, err error) {
	out, err := s.Peer.Tailscale(ctx, "status", "--json")
	if err != nil {
		return v, err
	}
	if err := json.NewDecoder(bytes.NewBufferString(out)).Decode(&v); err != nil {
		return v, fmt.Errorf("reading the peer's status: %w", err)
	}
	return v, nil
}

// AwaitGone returns when neither the tailnet nor the peer knows the pod's device any more, with how long it took until
// each did.
func (s *Scene) AwaitGone(ctx context.Context, pod *Pod) (tailnet, peer time.Duration, err error) {
	begin, id := time.Now(), pod.node.NodeID
	if id == "" {
		return 0, 0, errors.New("pod " + pod.FullName() + " was never in the tailnet")
	}
	err = eventually(ctx, nil, func(ctx context.Context) error {
		devices, err := s.Devices(ctx)
		for _, d := range devices {
			if d.ID == id {
				return fmt.Errorf("expected device %s (%s) to be gone from the tailnet, saw it listed", id, d.Hostname)
			}
		}
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	tailnet = time.Since(begin)
	err = eventually(ctx, nil, func(ctx context.Context) error {
		v, err := s.peerView(ctx)
		for _, p := range v.Peer {
			if p.ID == id {
				return fmt.Errorf("expected the peer's status without %s, saw %s in it", pod.node.DNSName, p.HostName)
			}
		}
		return err
	})
	return tailnet, time.Since(begin), err
}
