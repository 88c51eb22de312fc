// SPDX-License-Identifier: BSD-3-Clause

package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/demo"
)

// attach measures how a pod comes into the tailnet: alone, and among many.
func attach(ctx context.Context, cfg Config, r *report) error {
	return onScene(ctx, cfg.Lab, func(scene *demo.Scene) error {
		s, done := watchScene(ctx, scene)
		defer done()
		if err := s.oneByOne(ctx, cfg.Single, r); err != nil {
			return err
		}
		if err := s.burst(ctx, cfg.Burst, r); err != nil {
			return err
		}
		log, err := pluginLog(scene)
		if err != nil {
			return err
		}
		return addHooks(log, r)
	})
}

const unitMillis = "ms"

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// oneByOne attaches n pods, each after the one before has left the tailnet.
func (s *stage) oneByOne(ctx context.Context, n int, r *report) error {
	for i := range n {
		pod, err := s.joinAndPing(ctx, fmt.Sprintf("single%d", i))
		if err != nil {
			return err
		}
		pod.addTo(r, "one by one")
		// What a ping costs here, of which starting labtool is the most: the first one above has it in it.
		begin := time.Now()
		if err := s.scene.Ping(ctx, s.scene.AtPeer(), pod.addr); err != nil {
			return err
		}
		r.add("ping of a pod that is there", "lab", unitMillis, millis(time.Since(begin)))
		if err := s.scene.RemovePod(ctx, pod.Pod); err != nil {
			return err
		}
		if err := s.until(ctx, func(nodes map[string]demo.Node) bool { return len(nodes) == 0 }); err != nil {
			return fmt.Errorf("waiting for pod %s to leave: %w", pod.FullName(), err)
		}
	}
	return nil
}

// burst attaches n pods at once.
func (s *stage) burst(ctx context.Context, n int, r *report) error {
	type outcome struct {
		pod *joined
		err error
	}
	outcomes := make(chan outcome)
	begin := time.Now()
	for i := range n {
		go func() {
			pod, err := s.joinAndPing(ctx, fmt.Sprintf("burst%d", i))
			outcomes <- outcome{pod, err}
		}()
	}
	var failed error
	for range n {
		o := <-outcomes
		failed = errors.Join(failed, o.err)
		if o.err == nil {
			o.pod.addTo(r, fmt.Sprintf("%d at once", n))
		}
	}
	r.add("until the last first ping", fmt.Sprintf("%d at once", n), unitMillis, millis(time.Since(begin)))
	return failed
}

// joined is a pod that has answered.
type joined struct {
	*demo.Pod
	node demo.Node
	ping time.Duration // from the sandbox to the first answer
	place
}

func (j *joined) addTo(r *report, of string) {
	r.add("RunPodSandbox of CRI", of, unitMillis, millis(j.CRITook))
	r.add("sandbox to Running, says the plugin", of, unitMillis, millis(j.node.ReadyIn))
	r.add("sandbox to first ping from a peer", of, unitMillis, millis(j.ping))
}

// joinAndPing runs a pod and pings it from the peer until it answers. Its address is known once its node runs.
func (s *stage) joinAndPing(ctx context.Context, name string) (*joined, error) {
	pod, err := s.join(ctx, name)
	if err != nil {
		return nil, err
	}
	for ctx, cancel := context.WithTimeout(ctx, patience); ; {
		err := s.scene.Ping(ctx, s.scene.AtPeer(), pod.addr)
		if err == nil {
			cancel()
			pod.ping = time.Since(pod.Made)
			return pod, nil
		}
		if ctx.Err() != nil {
			cancel()
			return nil, err
		}
	}
}

// join runs a pod and waits for its node.
func (s *stage) join(ctx context.Context, name string) (*joined, error) {
	pod, err := s.scene.RunSandbox(ctx, lab.PodSpec{Name: name, Annotations: demo.OptIn()})
	if err != nil {
		return nil, err
	}
	j := &joined{Pod: pod}
	err = s.until(ctx, func(nodes map[string]demo.Node) bool {
		j.node = nodes[pod.ID]
		return j.node.State == "Running" && len(j.node.Addresses) > 0
	})
	if err != nil {
		return nil, fmt.Errorf("waiting for pod %s to run (it is %s: %s): %w", name, j.node.State, j.node.Reason, err)
	}
	j.place = s.podPlace(pod.ID, j.node.Addresses)
	return j, nil
}

// addHooks reads the time of each hook from the plugin's debug log.
func addHooks(log string, r *report) error {
	for line := range strings.Lines(log) {
		var entry struct {
			Msg, Event string
			Took       time.Duration
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil || entry.Msg != "hook done" {
			continue // a panic of the past has no JSON
		}
		r.add("hook "+entry.Event, "plugin", unitMillis, millis(entry.Took))
	}
	if r.first("hook RunPodSandbox") < 0 {
		return errors.New(`the plugin's debug log has no "hook done" of RunPodSandbox`)
	}
	return nil
}
