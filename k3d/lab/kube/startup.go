// SPDX-License-Identifier: BSD-3-Clause

package kube

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"tailscale-nri/k3d/lab"
)

// Start is how long a pod took to start.
type Start struct {
	Container time.Duration // from when the API server had it to when its container was started
	Ready     time.Duration // to when it was Ready, which a kubelet finds out at its next look, once in a second
}

// measuredLabel is on the pods that MeasureStarts runs.
const measuredLabel = "tailscale-nri.test/measured"

// MeasureStarts runs n pods with and n pods without these annotations on a node, one after the other and in turns, so
// that what else the machine does touches both alike.
func (c *Cluster) MeasureStarts(ctx context.Context, node string, n int, annotations map[string]string) (with, without []Start, err error) {
	on := c.node(node)
	if on == nil {
		return nil, nil, fmt.Errorf("no node %q", node)
	}
	// What a measurement that was broken off has left would be taken for a pod of this one, and never be heard of.
	if _, err := c.Kubectl(ctx, "delete", "pods", "-l", measuredLabel, "--wait"); err != nil {
		return nil, nil, err
	}
	watch, err := c.watchPods(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer watch.close()
	// The first pair is not counted: the watch may not be there yet when its first pod is made.
	for i := range n + 1 {
		for _, kind := range []struct {
			name        string
			annotations map[string]string
			starts      *[]Start
		}{{"with", annotations, &with}, {"without", nil, &without}} {
			start, err := c.measureStart(ctx, watch, on, fmt.Sprintf("start-%s-%d", kind.name, i), kind.annotations)
			if err != nil {
				return nil, nil, err
			}
			if i > 0 {
				*kind.starts = append(*kind.starts, start)
			}
		}
	}
	return with, without, nil
}

func (c *Cluster) node(name string) *Node {
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

func (c *Cluster) measureStart(
	ctx context.Context, watch *podWatch, node *Node, name string, annotations map[string]string,
) (Start, error) {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	type obj = map[string]any
	pod, err := json.Marshal(obj{
		"apiVersion": "v1", "kind": "Pod", "metadata": obj{"name": name, "annotations": annotations, "labels": obj{measuredLabel: ""}},
		"spec": obj{
			"nodeName": node.Name, "terminationGracePeriodSeconds": 0,
			"containers": []obj{{"name": "main", "image": lab.ToolImage, "imagePullPolicy": "Never"}},
		},
	})
	if err != nil {
		return Start{}, err
	}
	if err := c.Apply(ctx, string(pod)); err != nil {
		return Start{}, err
	}
	made, ready, err := watch.await(ctx, name)
	if err != nil {
		return Start{}, err
	}
	started, err := startedOn(ctx, node, name)
	if err != nil {
		return Start{}, err
	}
	_, err = c.Kubectl(ctx, "delete", "pod", name, "--wait")
	return Start{Container: started.Sub(made), Ready: ready.Sub(made)}, err
}

// startedOn asks the node's runtime, which knows it to the nanosecond.
func startedOn(ctx context.Context, node *Node, name string) (time.Time, error) {
	pods, err := node.CRI().ListPods(ctx)
	if err != nil {
		return time.Time{}, err
	}
	for _, pod := range pods {
		if pod.Spec.Name != name {
			continue
		}
		started, err := node.CRI().Started(ctx, pod.ID)
		if err != nil {
			return time.Time{}, err
		}
		return started["main"], nil
	}
	return time.Time{}, fmt.Errorf("the runtime of node %s has no pod %s", node.Name, name)
}

// podWatch gets each change of a pod, and stamps it with the time.
type podWatch struct {
	cmd   *exec.Cmd
	lines chan podLine
}

type podLine struct {
	name  string
	ready bool
	at    time.Time
}

func (c *Cluster) watchPods(ctx context.Context) (*podWatch, error) {
	const line = `{.metadata.name} {.status.conditions[?(@.type=="Ready")].status}{"\n"}`
	cmd := c.KubectlCommand(ctx, "get", "pods", "--watch-only", "-o", "jsonpath="+line)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("watching pods: %w", err)
	}
	w := &podWatch{cmd: cmd, lines: make(chan podLine, 1000)}
	go w.read(out)
	return w, nil
}

func (w *podWatch) read(out io.Reader) {
	defer close(w.lines)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		name, ready, _ := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		w.lines <- podLine{name, ready == "True", time.Now()}
	}
}

// await returns when a pod was heard of first, and when it was ready.
func (w *podWatch) await(ctx context.Context, name string) (made, ready time.Time, err error) {
	for {
		select {
		case <-ctx.Done():
			return made, ready, fmt.Errorf("waiting for pod %s: %w", name, ctx.Err())
		case line, ok := <-w.lines:
			if !ok {
				return made, ready, errors.New("the watch of pods has ended")
			}
			if line.name != name {
				continue
			}
			if made.IsZero() {
				made = line.at
			}
			if line.ready {
				return made, line.at, nil
			}
		}
	}
}

func (w *podWatch) close() {
	_ = w.cmd.Process.Kill()
	_ = w.cmd.Wait()
}
