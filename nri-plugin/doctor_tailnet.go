// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"tailscale-nri/engine"
	"tailscale-nri/engine/tailnet"
	"tailscale-nri/nri-plugin/internal/status"
)

// mostTagSets bounds how many keys are minted for a look.
const mostTagSets = 5

// checkMinting has a key minted for each set of tags that is known, and deleted.
func checkMinting(ctx context.Context, m *machine) []finding {
	if m.cfgErr != nil {
		return []finding{unknown("not tried: the configuration cannot be used")}
	}
	o := m.oauth()
	if o == nil {
		return []finding{judgeAuthKey(ctx, m)}
	}
	var findings []finding
	for _, tags := range m.tagSets() {
		list := strings.Join(tags, ", ")
		err := o.TryKey(ctx, tags)
		var known *tailnet.Error
		switch {
		case err == nil:
			findings = append(findings, fine("a key for "+list+" was minted, and deleted unused"))
		case errors.As(err, &known) && strings.HasPrefix(known.Op, "deleting"):
			findings = append(findings, warn("a key for "+list+" was minted: "+err.Error(), remedyKeyLeft))
		case errors.As(err, &known) && !known.Temporary:
			findings = append(findings, fail(err.Error(), remedyCredentials))
		default:
			findings = append(findings, fail(err.Error()+cause(err), remedyUnreachable))
		}
	}
	return findings
}

// cause is what an error of the tailnet leaves out, since it differs from time to time.
func cause(err error) string {
	var known *tailnet.Error
	if !errors.As(err, &known) || known.Err == nil {
		return ""
	}
	return " (" + known.Err.Error() + ")"
}

// tagSets are those of the configuration, and of the pods that are served.
func (m *machine) tagSets() [][]string {
	sets := [][]string{m.cfg.Tags}
	state, _ := engine.InspectState(m.cfg.StateDir) // checkState says what is wrong with it
	for _, pod := range state.Pods {
		tags := slices.Sorted(slices.Values(pod.Tags))
		known := func(s []string) bool { return slices.Equal(slices.Sorted(slices.Values(s)), tags) }
		if len(tags) > 0 && !slices.ContainsFunc(sets, known) && len(sets) < mostTagSets {
			sets = append(sets, tags)
		}
	}
	return sets
}

// judgeAuthKey goes by what became of the pods: a trial would make a device.
func judgeAuthKey(ctx context.Context, m *machine) finding {
	nodes, _ := m.nodes(ctx)
	running := 0
	for _, n := range nodes {
		if strings.Contains(n.Reason, envAuthKey) {
			return fail(n.Namespace+"/"+n.Pod+": "+n.Reason, remedyAuthKey)
		}
		if n.State == status.Running {
			running++
		}
	}
	if tailnet.IsTailscales(m.cfg.LoginServer) && !strings.HasPrefix(m.cfg.AuthKey, "tskey-auth-") {
		return fail("TS_AUTHKEY does not begin with tskey-auth-, as Tailscale's auth keys do", remedyAuthKey)
	}
	if running > 0 {
		return fine(fmt.Sprintf("%d pods here came in with the auth key, or did so once; it is not tried", running))
	}
	return unknown("an auth key is not tried, since that would make a device; the first pod shows whether it is good")
}

// checkDevices counts this cluster's devices.
func checkDevices(ctx context.Context, m *machine) []finding {
	o := m.oauth()
	switch {
	case m.cfgErr != nil:
		return []finding{unknown("not counted: the configuration cannot be used")}
	case o == nil:
		return []finding{unknown("not counted: with an auth key nobody can list devices")}
	}
	devices, err := o.Devices(ctx)
	var known *tailnet.Error
	switch {
	case errors.As(err, &known) && !known.Temporary:
		return []finding{fail(err.Error(), remedyCredentials)}
	case err != nil:
		return []finding{unknown("not counted: " + err.Error())}
	}
	ours := 0
	for _, d := range devices {
		if is, _ := o.Ours(d); is {
			ours++
		}
	}
	seen := fmt.Sprintf("%d devices of this cluster, %d in the tailnet", ours, len(devices))
	if m.limit == 0 {
		return []finding{fine(seen)}
	}
	seen += fmt.Sprintf(", %d allowed", m.limit)
	switch {
	case ours >= m.limit:
		return []finding{fail(seen, remedyDevices)}
	case ours*10 >= m.limit*9:
		return []finding{warn(seen, remedyDevices)}
	}
	return []finding{fine(seen)}
}
