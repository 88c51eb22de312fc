// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"tailscale.com/derp/derphttp"
	"tailscale.com/net/netcheck"
	"tailscale.com/net/netmon"
	"tailscale.com/tailcfg"

	"tailscale-nri/engine"
	"tailscale-nri/engine/tailnet"
)

// The two findings of checkPaths.
const (
	aboutDERP = "DERP"
	aboutUDP  = "UDP"
)

// homeCandidates is to how many regions a connection is made: a node takes one of
// the nearest for its home.
const homeCandidates = 3

// checkPaths measures the DERP regions as a node does (tailscale.com/net/netcheck),
// and then connects to the nearest: STUN says nothing about TCP.
func checkPaths(ctx context.Context, h *Host) []Finding {
	dm, from := h.derpMap(ctx)
	if dm == nil {
		return []Finding{{Check: aboutDERP, Result: ResultUnknown, Seen: from}, {Check: aboutUDP, Result: ResultUnknown, Seen: "not tried without a DERP server to ask"}}
	}
	mon := netmon.NewStatic()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // which closes the sockets
	report, err := MeasurePath(ctx, mon, dm)
	udp := judgeUDP(report)
	switch {
	case !hasSTUN(dm):
		udp = unknown("no DERP server has STUN")
	case err != nil:
		udp = warn("no measurement: "+err.Error(), remedyUDP)
	}
	udp.Check = aboutUDP
	derp := h.judgeDERP(ctx, mon, dm, report, from)
	derp.Check = aboutDERP
	return []Finding{derp, udp}
}

// hasSTUN reports whether a DERP server answers STUN requests.
func hasSTUN(dm *tailcfg.DERPMap) bool {
	for _, region := range dm.Regions {
		if slices.ContainsFunc(region.Nodes, func(n *tailcfg.DERPNode) bool { return n.STUNPort >= 0 }) {
			return true
		}
	}
	return false
}

// MeasurePath asks all regions. Its report is never nil.
func MeasurePath(ctx context.Context, mon *netmon.Monitor, dm *tailcfg.DERPMap) (*netcheck.Report, error) {
	client := &netcheck.Client{NetMon: mon, Logf: func(string, ...any) {}}
	if err := client.Standalone(ctx, ""); err != nil {
		return &netcheck.Report{}, err
	}
	report, err := client.GetReport(ctx, dm, nil)
	if err != nil {
		return &netcheck.Report{}, err
	}
	return report, nil
}

func judgeUDP(r *netcheck.Report) Finding {
	if !r.UDP {
		return warn("no STUN server has answered", remedyUDP)
	}
	var seen []string
	for _, family := range []struct {
		name string
		is   bool
		as   fmt.Stringer
	}{{"IPv4", r.IPv4, r.GlobalV4}, {"IPv6", r.IPv6, r.GlobalV6}} {
		if family.is {
			seen = append(seen, fmt.Sprintf("%s as %v", family.name, family.as))
		}
	}
	text := "STUN answers: " + strings.Join(seen, ", ")
	if r.MappingVariesByDestIP.EqualBool(true) {
		text += "; the NAT gives each destination another port, so that peers behind such a NAT meet over DERP"
	}
	return fine(text)
}

// judgeDERP connects to the nearest regions, by the report, or to the first if it
// knows none.
func (h *Host) judgeDERP(ctx context.Context, mon *netmon.Monitor, dm *tailcfg.DERPMap, r *netcheck.Report, from string) Finding {
	ids := slices.SortedFunc(maps.Keys(dm.Regions), func(a, b tailcfg.DERPRegionID) int {
		return cmp.Or(cmp.Compare(LatencyOf(r, a), LatencyOf(r, b)), cmp.Compare(a, b))
	})
	ids = slices.DeleteFunc(ids, func(id tailcfg.DERPRegionID) bool {
		return len(dm.Regions[id].Nodes) == 0 || dm.Regions[id].NoMeasureNoHome
	})
	ids = ids[:min(len(ids), homeCandidates)]
	results, reached := make([]string, len(ids)), make([]bool, len(ids))
	ctx, cancel := context.WithTimeout(ctx, h.patience/3)
	defer cancel()
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() {
			region := dm.Regions[id]
			start := time.Now()
			err := dialDERP(ctx, mon, region)
			reached[i] = err == nil
			results[i] = fmt.Sprintf("%s in %v", region.RegionCode, time.Since(start).Round(time.Millisecond))
			if err != nil {
				results[i] = fmt.Sprintf("%s not: %v", region.RegionCode, err)
			}
		})
	}
	wg.Wait()
	seen := fmt.Sprintf("connected to %s; %d regions, %s", strings.Join(results, ", "), len(dm.Regions), from)
	switch {
	case len(ids) == 0 || !slices.Contains(reached, true):
		return fail(seen, remedyDERP)
	case slices.Contains(reached, false):
		return warn(seen, remedyDERP)
	}
	return fine(seen)
}

// LatencyOf returns the latency of a region, an hour if it did not answer.
func LatencyOf(r *netcheck.Report, id tailcfg.DERPRegionID) time.Duration {
	if d, ok := r.RegionLatency[id]; ok {
		return d
	}
	return time.Hour
}

// dialDERP makes a TLS connection to a region, through the proxy if there is one,
// and ends it.
func dialDERP(ctx context.Context, mon *netmon.Monitor, region *tailcfg.DERPRegion) error {
	client := derphttp.NewNetcheckClient(func(string, ...any) {}, mon)
	defer client.Close()
	_, conn, _, err := client.DialRegionTLS(ctx, region)
	if err != nil {
		return err
	}
	conn.Close()
	return nil
}

// derpMap is the one that a node here was last told, or the one that Tailscale publishes.
// Where it is nil, from says why.
func (h *Host) derpMap(ctx context.Context) (dm *tailcfg.DERPMap, from string) {
	if dm := engine.StoredDERPMap(ctx, h.cfg.StateDir); dm != nil {
		return dm, "as a pod here was told"
	}
	if !tailnet.IsTailscales(h.cfg.LoginServer) {
		return nil, "the control server tells only its nodes which DERP servers there are: not known before the first pod"
	}
	res, err := h.get(ctx, h.derpMapAt)
	if err != nil {
		return nil, "Tailscale's list of DERP servers cannot be fetched: " + err.Error()
	}
	defer res.Body.Close()
	dm = &tailcfg.DERPMap{}
	if err := json.NewDecoder(io.LimitReader(res.Body, 4<<20)).Decode(dm); err != nil || len(dm.Regions) == 0 {
		return nil, fmt.Sprintf("Tailscale's list of DERP servers cannot be fetched: HTTP %s", res.Status)
	}
	if res.StatusCode != http.StatusOK {
		return nil, "Tailscale's list of DERP servers cannot be fetched: " + res.Status
	}
	return dm, "as Tailscale shows to everyone"
}
