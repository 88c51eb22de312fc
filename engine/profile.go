// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"tailscale.com/types/key"

	"tailscale-nri/engine/tailnet"
)

// openTailnets makes the tailnets of the configuration the engine's.
func (e *Engine) openTailnets() {
	all := map[string]tailnet.Tailnet{"": e.cfg.Tailnet}
	maps.Copy(all, e.cfg.Profiles)
	e.tailnets = map[string]tailnet.Tailnet{}
	for profile, door := range all {
		if p, ok := door.(interface{ Prepare(context.Context) }); ok {
			e.prepare = append(e.prepare, p.Prepare)
		}
		e.tailnets[profile] = steppedTailnet{door, e, profile}
	}
	e.cfg.Tailnet, e.cfg.Profiles = nil, nil // from here on each is asked for what is its own, as a step
}

// profile names the node's tailnet.
func (p *published) profile() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status.Features.Profile
}

// tailnet is the node's own. None of the node's locks is held.
func (n *node) tailnet() tailnet.Tailnet {
	profile := n.profile()
	if tn, ok := n.e.tailnets[profile]; ok {
		return tn
	}
	return absentTailnet{profile, n.record().LoginServer}
}

// asBegun is the pod as it was when the sandbox was first attached, but for the way
// to its netns: what it may have and gets by default may be other things by now.
// n.op is held.
//
// Nor does a pod that is in one tailnet come into another with its next sandbox:
// the first one's API knows its device, and no other may be asked to delete it.
func (n *node) asBegun(pod Pod) (Pod, error) {
	was := n.rec.Pod
	switch {
	case n.disk.fresh, was.SandboxID == unknownSandbox && was.Features.Profile == "": // it may have been in any
		return pod, nil
	case was.SandboxID == pod.SandboxID:
		was.NetNS, was.PID = pod.NetNS, pod.PID
		return was, nil
	case was.Features.Profile != pod.Features.Profile:
		return pod, fmt.Errorf("the pod has its node in the tailnet of profile %q, and is to have one in that of profile %q by now (\"\" is the default): delete the pod, so that it is created again, or set the annotation tailscale.com/profile back",
			was.Features.Profile, pod.Features.Profile)
	}
	return pod, nil
}

// absentTailnet is in the place of one that the configuration no longer has. A node
// that is in it goes on, and keeps its device when its pod is gone: no other
// tailnet's API is asked about it.
type absentTailnet struct {
	profile, loginServer string
}

var _ tailnet.Tailnet = absentTailnet{}

func (a absentTailnet) error(op string) error {
	return &tailnet.Error{
		Op:     op,
		Reason: fmt.Sprintf("the configuration no longer has the profile %q, in whose tailnet the node is", a.profile),
		Remedy: fmt.Sprintf("put the keys %s.TS_… back; or delete the device there by hand, and the node's directory in TS_STATE_DIR while the program does not run", a.profile),
	}
}

func (a absentTailnet) ControlURL() string { return a.loginServer }

func (a absentTailnet) NewAuthKey(_ context.Context, n tailnet.Node) (string, error) {
	return "", a.error("minting auth key for " + n.Hostname)
}

func (a absentTailnet) Delete(_ context.Context, id string) error {
	return a.error("deleting device " + id)
}

func (a absentTailnet) Devices(context.Context) ([]tailnet.Device, error) {
	return nil, a.error("listing devices")
}

func (a absentTailnet) Device(_ context.Context, id string) (tailnet.Device, error) {
	return tailnet.Device{}, a.error("looking at device " + id)
}

func (a absentTailnet) Rename(_ context.Context, id, _ string) error {
	return a.error("renaming device " + id)
}

func (absentTailnet) LockKey(key.MachinePublic, bool) (lock key.NLPrivate, ok bool) {
	return lock, false
}

func (absentTailnet) Ours(tailnet.Device) (ours, chosenName bool) { return false, false }

// RequestsTags: a node that is in has its tags.
func (absentTailnet) RequestsTags() bool { return false }

func (a absentTailnet) WrongTags(asked, granted []string) error {
	return a.error(fmt.Sprintf("tags %q were asked for and %q given", asked, slices.Clone(granted)))
}

func (a absentTailnet) Refusal(message string) error {
	return a.error(fmt.Sprintf("the login server says %q", message))
}
