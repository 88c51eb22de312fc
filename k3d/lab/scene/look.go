// SPDX-License-Identifier: BSD-3-Clause

package scene

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Command is something to type, with what it shows.
type Command struct{ Line, Shows string }

// LookAround lists what can be typed while the scene stands; all of it works from the project's directory.
func (s *Scene) LookAround() []Command {
	inLab := s.labCommand()
	list := []Command{
		{inLab + " pods", "the pods"},
		{inLab + " exec node tailscale-nri status", "what the plugin says of its nodes"},
		{inLab + " devices", "what the tailnet says"},
		{inLab + " exec " + peerName + " tailscale status", "what the peer says"},
	}
	if s.cfg.Own != nil {
		list = append(list[:2], list[3:]...) // the user's own is seen in its admin console
	}
	for _, pod := range s.podList() {
		if !pod.IP4().IsValid() {
			continue
		}
		list = append(list,
			Command{fmt.Sprintf("%s exec %.12s ip addr show ts0", inLab, pod.ID), "ts0 in pod " + pod.Spec.Name},
			Command{fmt.Sprintf("%s exec %s curl -s http://%v:8080/", inLab, peerName, pod.IP4()), "its page, for the peer"})
	}
	return append(list,
		Command{inLab + " run another tailscale.com/enabled=true", "one more pod joins"},
		Command{fmt.Sprintf("nsenter --net=%s/ns/node ip -br link", s.Lab.Dir()), "the node's links, each vetht… the host end of a ts0"},
		Command{fmt.Sprintf("tail %s", filepath.Join(s.Lab.Dir(), "log", "plugin.log")), "the plugin's log"})
}

// labCommand runs the lab's own program for this lab.
func (s *Scene) labCommand() string {
	var words []string
	cfg, build := s.cfg.Lab, ".build" // below the module, where the command is typed
	if cfg.Build != "" {
		words, build = append(words, "LAB_BUILD="+cfg.Build), cfg.Build
	}
	if cfg.Name != "" {
		words = append(words, "LAB_NAME="+cfg.Name)
	}
	if cfg.Dir != "" {
		words = append(words, "LAB_DIR="+cfg.Dir)
	}
	return strings.Join(append(words, filepath.Join(build, "bin", "lab")), " ")
}
