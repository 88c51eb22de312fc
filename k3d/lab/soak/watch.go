// SPDX-License-Identifier: BSD-3-Clause

package soak

import (
	"context"
	"fmt"
	"time"

	"tailscale-nri/k3d/lab/internal/wait"
	"tailscale-nri/k3d/lab/scene"
)

const (
	// pollInterval is how often the plugin is asked for its status, by one asker for all that wait.
	pollInterval = 50 * time.Millisecond
	// patience bounds what must happen in the end, whatever goes wrong meanwhile. It is not an expectation.
	patience = 3 * time.Minute
)

// watch is what the plugin says of all nodes, over and over.
type watch struct {
	scene *scene.Scene
	seen  func(scene.Node)

	nodes wait.Latest[map[string]scene.Node] // by sandbox
}

func newWatch(scene *scene.Scene, seen func(scene.Node)) *watch {
	return &watch{scene: scene, seen: seen}
}

// run asks until ctx is done. A plugin that is not there is asked again.
func (w *watch) run(ctx context.Context) {
	for ctx.Err() == nil {
		if nodes, err := w.ask(ctx); err == nil {
			w.tell(nodes)
		}
		pause(ctx, pollInterval)
	}
}

func (w *watch) ask(ctx context.Context) ([]scene.Node, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return w.scene.Status(ctx)
}

func (w *watch) tell(nodes []scene.Node) {
	byID := make(map[string]scene.Node)
	for _, n := range nodes {
		w.seen(n)
		byID[n.SandboxID] = n
	}
	w.nodes.Set(byID)
}

// await returns the sandbox's node as soon as want accepts it in an answer from now on.
func (w *watch) await(ctx context.Context, sandboxID string, want func(scene.Node) error) (node scene.Node, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = w.nodes.Until(ctx, func(nodes map[string]scene.Node) error {
		var known bool
		if node, known = nodes[sandboxID]; !known {
			return fmt.Errorf("the plugin knows no node of sandbox %.12s", sandboxID)
		}
		return want(node)
	})
	return node, err
}

// running checks that a node is in the tailnet.
func running(n scene.Node) error {
	if n.State != "Running" || len(n.Addresses) == 0 {
		return fmt.Errorf("expected state Running with addresses, saw %s %v: %s", n.State, n.Addresses, n.Reason)
	}
	return nil
}

// another checks that a node is in the tailnet, and not as the device it was.
func another(was string) func(scene.Node) error {
	return func(n scene.Node) error {
		if n.NodeID == was {
			return fmt.Errorf("expected another device than %s, which was deleted, saw it %s: %s", was, n.State, n.Reason)
		}
		return running(n)
	}
}
