// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"tailscale.com/types/key"

	"tailscale-nri/engine/internal/podstate"
	"tailscale-nri/engine/tailnet"
)

// tailnetAccess is what the engine can do in a tailnet. Each change is a step.
type tailnetAccess struct {
	tailnet.Tailnet
	api tailnet.DeviceAPI // nil where there is none: nodes are logged out, and no device is looked up
}

// openTailnets takes the tailnets of the configuration over into the engine. Whether one
// has an API for its devices is asked only here.
func (e *Engine) openTailnets() {
	all := map[string]tailnet.Tailnet{"": e.cfg.Tailnet}
	maps.Copy(all, e.cfg.Profiles)
	e.tailnets = map[string]tailnetAccess{}
	for profile, tn := range all {
		if p, ok := tn.(interface{ Prepare(context.Context) }); ok {
			e.prepare = append(e.prepare, p.Prepare)
		}
		access := tailnetAccess{Tailnet: steppedTailnet{tn, profiled{e, profile}}}
		if api, ok := tn.(tailnet.DeviceAPI); ok {
			access.api = steppedAPI{api, profiled{e, profile}}
		}
		e.tailnets[profile] = access
	}
	e.cfg.Tailnet, e.cfg.Profiles = nil, nil // from here on only e.tailnets is used, so that changes are steps
}

// profile returns the name of the node's tailnet.
func (p *published) profile() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status.Features.Profile
}

// tailnet returns the node's tailnet. None of the node's locks is held.
func (n *node) tailnet() tailnetAccess {
	profile := n.profile()
	if tn, ok := n.e.tailnets[profile]; ok {
		return tn
	}
	absent := absentTailnet{profile, n.record().LoginServer, &n.e.cfg.Names}
	return tailnetAccess{absent, absent}
}

// asBegun returns the pod as it was when the sandbox was first attached, except for the
// path of its netns. The policy and the defaults may have changed since then. n.op is
// held.
//
// A pod that is in one tailnet does not move to another with its next sandbox: its device
// is known to the API of the first tailnet, and no other API may be asked to delete it.
func (n *node) asBegun(pod Pod) (Pod, error) {
	was := n.rec.Pod
	switch {
	case n.disk.fresh, was.SandboxID == podstate.UnknownSandbox && was.Features.Profile == "": // it may have been in any tailnet
		return pod, nil
	case was.SandboxID == pod.SandboxID:
		was.NetNS, was.PID = pod.NetNS, pod.PID
		return was, nil
	case was.Features.Profile != pod.Features.Profile:
		return pod, errors.New("the pod has its node in the tailnet of profile " + strconv.Quote(was.Features.Profile) + ", and is to have one in that of profile " +
			strconv.Quote(pod.Features.Profile) + " by now (\"\" is the default): delete the pod, so that it is created again, or set " + n.e.cfg.Names.PodProfile + " back")
	}
	return pod, nil
}

// absentTailnet replaces a tailnet that the configuration no longer has. A node in it
// goes on, and keeps its device when its pod is gone: no other tailnet's API is asked
// about it.
type absentTailnet struct {
	profile, loginServer string
	names                *Names
}

var (
	_ tailnet.Tailnet   = absentTailnet{}
	_ tailnet.DeviceAPI = absentTailnet{}
)

func (a absentTailnet) error(op string) error {
	return &tailnet.Error{
		Op:     op,
		Reason: fmt.Sprintf("the configuration no longer has the profile %q, in whose tailnet the node is", a.profile),
		Remedy: "put " + a.names.Profile(a.profile) + " back; or delete the device there by hand, and the node's directory in " + a.names.StateDir + " while the program does not run",
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

// RequestsTags returns false: a node that is in the tailnet has its tags.
func (absentTailnet) RequestsTags() bool { return false }

func (absentTailnet) KeyRenewal() string { return "" }

func (a absentTailnet) WrongTags(asked, granted []string) error {
	return a.error(fmt.Sprintf("tags %q were asked for and %q given", asked, slices.Clone(granted)))
}

func (a absentTailnet) Refusal(message string) error {
	return a.error(fmt.Sprintf("the login server says %q", message))
}
