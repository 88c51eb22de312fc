// SPDX-License-Identifier: BSD-3-Clause

package podtools

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"tailscale.com/net/netcheck"
	"tailscale.com/net/netmon"
	"tailscale.com/net/netns"
	"tailscale.com/tailcfg"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/doctor"
)

const usageNetcheck = `tailscale-nri netcheck [flags] [NAMESPACE/]POD
Measure the way from this host to the DERP servers of the pod's tailnet, and show what the
pod's node has last measured by its own UDP socket, which is the host's too. Ends with 1 if
no DERP server answers.
  -json, -o json         as JSON: the reports "now" and "node", in the form of tailscale netcheck --format=json
`

// netcheckTime bounds a measurement. netcheck itself takes 5 seconds at most.
const netcheckTime = 15 * time.Second

// netchecks are both measurements.
type netchecks struct {
	Now  *netcheck.Report `json:"now"`
	Node *engine.Netcheck `json:"node"`
}

func netcheckFlags(fs *flag.FlagSet) func(context.Context, *podClient, toolIO) error {
	asJSON := formatFlag(fs)
	return func(ctx context.Context, c *podClient, out toolIO) error {
		forMachines, err := asJSON()
		if err != nil {
			return err
		}
		v, err := c.view(ctx)
		if err != nil {
			return err
		}
		dm, err := c.CurrentDERPMap(ctx)
		switch {
		case err != nil:
			return fmt.Errorf("asking the node of %s for its DERP map: %w", c.name, err)
		case dm == nil || len(dm.Regions) == 0:
			return fmt.Errorf("the node of %s, which is %s, has been told of no DERP server: %s", c.name, v.State, cmp.Or(v.Reason, "the tailnet has none"))
		}
		var r netchecks
		if r.Node, err = c.netcheck(ctx); err != nil {
			return err
		}
		cfg, _ := config.Read(out.getenv) // what is wrong with it is the serving process's to say
		config.UseProxy(cfg.Proxy)
		netns.SetEnabled(false) // as the engine has it
		ctx, cancel := context.WithTimeout(ctx, netcheckTime)
		defer cancel()
		if r.Now, err = doctor.MeasurePath(ctx, netmon.NewStatic(), dm); err != nil {
			return fmt.Errorf("measuring the way to the DERP servers: %w", err)
		}
		if forMachines {
			err = printJSON(out.stdout, r)
		} else {
			printNetchecks(out.stdout, c.name, dm, r)
		}
		if err == nil && len(r.Now.RegionLatency) == 0 {
			err = noAnswer{errors.New("no DERP server has answered")}
		}
		return err
	}
}

// netcheck asks what the node has measured itself.
func (c *podClient) netcheck(ctx context.Context) (*engine.Netcheck, error) {
	n := &engine.Netcheck{}
	return n, c.get(ctx, "/netcheck", n)
}

func printNetchecks(w io.Writer, name string, dm *tailcfg.DERPMap, r netchecks) {
	fmt.Fprint(w, "\nReport of this host, now:\n")
	printNetcheck(w, dm, r.Now)
	printNodeNetcheck(w, name, dm, r.Node)
}

// printNodeNetcheck writes what the node itself has measured.
func printNodeNetcheck(w io.Writer, name string, dm *tailcfg.DERPMap, n *engine.Netcheck) {
	fmt.Fprintf(w, "\nReport of the node of %s, by UDP port %d of this host", name, n.Port)
	if n.Report == nil {
		fmt.Fprint(w, ": it has measured nothing yet\n")
		return
	}
	fmt.Fprintf(w, ", %v ago:\n\t* Home DERP: %s\n", time.Since(n.Report.Now).Round(time.Second), cmp.Or(n.HomeDERP, "[none]"))
	printNetcheck(w, dm, n.Report)
}

// printNetcheck writes a report as tailscale netcheck does. A report that a node has
// made in passing has few regions.
func printNetcheck(w io.Writer, dm *tailcfg.DERPMap, r *netcheck.Report) {
	line := func(key, format string, args ...any) { fmt.Fprintf(w, "\t* "+key+": "+format+"\n", args...) }
	line("Time", "%s", r.Now.UTC().Format(time.RFC3339))
	line("UDP", "%v", r.UDP)
	line("IPv4", "%s", family(r.GlobalV4, "(no addr found)"))
	v6 := "no, unavailable in OS"
	switch {
	case r.IPv6:
		v6 = "(no addr found)"
	case r.OSHasIPv6:
		v6 = "no, but OS has support"
	}
	line("IPv6", "%s", family(r.GlobalV6, v6))
	varies := "unknown"
	if v, ok := r.MappingVariesByDestIP.Get(); ok {
		varies = strconv.FormatBool(v)
	}
	line("MappingVariesByDestIP", "%s", varies)
	line("PortMapping", "not used: a pod's node asks no router for ports")
	if len(r.RegionLatency) == 0 {
		line("Nearest DERP", "unknown (no response to latency probes)")
		return
	}
	nearest := "[none]"
	if r.PreferredDERP != 0 {
		nearest = fmt.Sprintf("%d (region not found in map)", r.PreferredDERP)
		if region := dm.Regions[r.PreferredDERP]; region != nil {
			nearest = region.RegionName
		}
	}
	line("Nearest DERP", "%s", nearest)
	fmt.Fprint(w, "\t* DERP latency:\n")
	for _, id := range slices.SortedFunc(maps.Keys(dm.Regions), func(a, b tailcfg.DERPRegionID) int {
		return cmp.Or(cmp.Compare(doctor.LatencyOf(r, a), doctor.LatencyOf(r, b)), cmp.Compare(a, b))
	}) {
		took := ""
		if d, ok := r.RegionLatency[id]; ok {
			took = d.Round(time.Millisecond / 10).String()
		}
		fmt.Fprintf(w, "\t\t- %3s: %-7s (%s)\n", dm.Regions[id].RegionCode, took, dm.Regions[id].RegionName)
	}
}

// family says where packets of one IP version are seen to come from.
func family(seen netip.AddrPort, none string) string {
	if seen.IsValid() {
		return "yes, " + seen.String()
	}
	return none
}
