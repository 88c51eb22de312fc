// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/oauth2"

	"tailscale-nri/engine"
	"tailscale-nri/engine/tailnet"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/status"
)

// mostTagSets bounds how many keys are minted for a look.
const mostTagSets = 5

// checkMinting has a key minted for each set of tags that is known of each tailnet, and
// deleted. It ends before its time does, so that a key can be deleted even then.
func checkMinting(ctx context.Context, h *Host) []Finding {
	if h.cfgErr != nil {
		return []Finding{unknown("not tried: the configuration cannot be used")}
	}
	ctx, cancel := context.WithTimeout(ctx, h.patience*7/8)
	defer cancel()
	return h.eachWay(h.ways(), func(w way) []Finding {
		o := h.oauth(w.cfg)
		if o == nil {
			return []Finding{judgeAuthKey(ctx, h, w)}
		}
		return mintForEach(ctx, o, cmp.Or(w.cfg.APIURL, "https://api.tailscale.com"), h.tagSets(w))
	})
}

// mintForEach has o make a key for each set of tags. at is the API's URL.
func mintForEach(ctx context.Context, o *tailnet.OAuth, at string, sets [][]string) (findings []Finding) {
	for _, tags := range sets {
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
		case known == nil:
			findings = append(findings, fail(err.Error()+": no answer from "+at, RemedyUnreachable))
		default:
			findings = append(findings, fail(err.Error()+cause(err), RemedyUnreachable))
		}
	}
	return findings
}

// cause is what an error of the tailnet leaves out, since it differs from time to time:
// why there was no answer. An answer of the server is left out, as it may quote the
// request with its secret.
func cause(err error) string {
	var known *tailnet.Error
	if !errors.As(err, &known) || known.Err == nil || errors.As(known.Err, new(*oauth2.RetrieveError)) {
		return ""
	}
	return " (" + known.Err.Error() + ")"
}

// tagSets are the tags of a tailnet's pods, by the configuration and by the records.
func (h *Host) tagSets(w way) [][]string {
	sets := [][]string{w.cfg.Tags}
	state, _ := engine.InspectState(h.cfg.StateDir) // checkState says what is wrong with it
	for _, pod := range state.Pods {
		tags := slices.Sorted(slices.Values(pod.Tags))
		known := func(s []string) bool { return slices.Equal(slices.Sorted(slices.Values(s)), tags) }
		if pod.Profile == w.profile && len(tags) > 0 && !slices.ContainsFunc(sets, known) && len(sets) < mostTagSets {
			sets = append(sets, tags)
		}
	}
	return sets
}

// judgeAuthKey goes by the state of the pods: a trial would make a device.
func judgeAuthKey(ctx context.Context, h *Host, w way) Finding {
	nodes, _ := h.nodes(ctx)
	running := 0
	for _, n := range nodes {
		switch {
		case n.Profile != w.profile:
		case n.State == status.Running:
			running++ // what else it says is of its own key
		case strings.Contains(n.Reason, settings.AuthKey):
			return fail(n.Namespace+"/"+n.Pod+": "+n.Reason, remedyAuthKey)
		}
	}
	if tailnet.IsTailscales(w.cfg.LoginServer) && !strings.HasPrefix(w.cfg.AuthKey, "tskey-auth-") {
		return fail("TS_AUTHKEY does not begin with tskey-auth-, as Tailscale's auth keys do", remedyAuthKey)
	}
	if running > 0 {
		return fine(fmt.Sprintf("%d pods here came in with the auth key, or did so once; it is not tried", running))
	}
	return unknown("an auth key is not tried, since that would make a device; the first pod shows whether it is good")
}

// checkDevices counts this cluster's devices in each tailnet.
func checkDevices(ctx context.Context, h *Host) []Finding {
	if h.cfgErr != nil {
		return []Finding{unknown("not counted: the configuration cannot be used")}
	}
	return h.eachWay(h.ways(), func(w way) []Finding { return countDevices(ctx, h.oauth(w.cfg), h.limit) })
}

// countDevices counts those of one tailnet. A limit of 0 is none.
func countDevices(ctx context.Context, o *tailnet.OAuth, limit int) []Finding {
	if o == nil {
		return []Finding{unknown("not counted: with an auth key nobody can list devices")}
	}
	devices, err := o.Devices(ctx)
	var known *tailnet.Error
	switch {
	case errors.As(err, &known) && !known.Temporary:
		return []Finding{fail(err.Error(), remedyCredentials)}
	case err != nil:
		return []Finding{unknown("not counted: " + err.Error())}
	}
	ours := 0
	for _, d := range devices {
		if is, _ := o.Ours(d); is {
			ours++
		}
	}
	seen := fmt.Sprintf("%d devices of this cluster, %d in the tailnet", ours, len(devices))
	if limit == 0 {
		return []Finding{fine(seen)}
	}
	seen += fmt.Sprintf(", %d allowed", limit)
	switch {
	case ours >= limit:
		return []Finding{fail(seen, remedyDevices)}
	case ours*10 >= limit*9:
		return []Finding{warn(seen, remedyDevices)}
	}
	return []Finding{fine(seen)}
}
