// SPDX-License-Identifier: BSD-3-Clause

package scene

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"tailscale-nri/k3d/lab"
)

// End ends a scene that was left up, also one whose program was killed. On a tailnet of the user's it first deletes the
// devices: the pods' through the plugin that still runs, the peer's with the credentials in cfg. Where there is none, it returns nil.
func End(ctx context.Context, cfg Config) error {
	running, err := lab.Open(cfg.Lab)
	if err != nil {
		return lab.Down(cfg.Lab)
	}
	s := &Scene{Lab: running, cfg: cfg}
	if !s.hasOwnControl() {
		err = s.leaveOpened(ctx)
	}
	return errors.Join(err, running.Close(), lab.Down(cfg.Lab))
}

// hasOwnControl is true for a lab whose tailnet ends with it. The log tells it even if the control plane has crashed.
func (s *Scene) hasOwnControl() bool {
	_, err := os.Stat(filepath.Join(s.Lab.Dir(), "log", "control.log"))
	return err == nil
}

// leaveOpened is leave for a scene that another program has made.
func (s *Scene) leaveOpened(ctx context.Context) error {
	list, err := s.Lab.CRI().ListPods(ctx)
	if err != nil {
		return err
	}
	for _, pod := range list {
		s.pods = append(s.pods, &Pod{Pod: pod})
	}
	nodes, err := s.Status(ctx)
	if err != nil {
		s.note("the plugin is not there (%v)", err)
	}
	for _, n := range nodes {
		s.letIn(n.NodeID)
	}
	if id := s.openedPeerID(ctx); id != "" {
		s.letIn(id)
	}
	if s.cfg.Own == nil {
		return s.leaveWithout(ctx)
	}
	if s.tailnet, err = newOwnTailnet(*s.cfg.Own, s.cfg.Tags); err != nil {
		return err
	}
	return s.leave(ctx)
}

// openedPeerID is "" if there is no peer, or it is in no tailnet.
func (s *Scene) openedPeerID(ctx context.Context) string {
	cmd, err := s.Lab.CommandIn(ctx, peerName, "tailscale", "status", "--json")
	if err != nil {
		return ""
	}
	out, err := cmd.Output()
	var v view
	if err != nil || json.Unmarshal(out, &v) != nil {
		return ""
	}
	return v.Self.ID
}

// leaveWithout has the plugin delete the pods' devices; for the peer's it takes credentials that are not there.
func (s *Scene) leaveWithout(ctx context.Context) error {
	for _, pod := range s.podList() {
		if err := s.RemovePod(ctx, pod); err != nil {
			return err
		}
	}
	err := eventually(ctx, nil, func(ctx context.Context) error {
		nodes, err := s.Status(ctx)
		if err == nil && len(nodes) > 0 {
			err = fmt.Errorf("expected the plugin to have deleted all devices, saw %d left", len(nodes))
		}
		return err
	})
	return errors.Join(err, fmt.Errorf("the device %s is still in your tailnet: delete it in the admin console, "+
		"or set TS_OAUTH_CLIENT_ID and TS_OAUTH_CLIENT_SECRET next time", peerName))
}
