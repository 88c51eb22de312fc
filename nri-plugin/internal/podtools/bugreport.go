// SPDX-License-Identifier: BSD-3-Clause

package podtools

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"tailscale.com/ipn/ipnstate"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/buildinfo"
	"tailscale-nri/nri-plugin/internal/doctor"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

const usageBugreport = `tailscale-nri bugreport [flags] [NAMESPACE/]POD
Print what is known of the pod's node, to attach to a report. Nothing is uploaded: a node of a
pod sends no logs, so that there is no marker that Tailscale's support could look up. It holds
names and addresses of the tailnet, and no private key.
  -peers                 with all peers and users that the node sees
`

func bugreportFlags(fs *flag.FlagSet) func(context.Context, *podClient, toolIO) error {
	peers := fs.Bool("peers", false, "")
	return func(ctx context.Context, c *podClient, out toolIO) error {
		v, err := c.view(ctx)
		if err != nil {
			return err
		}
		// What fails is part of the report.
		r := &bugReport{c: c, v: v, peers: *peers}
		for _, section := range []struct {
			title string
			write func(context.Context, io.Writer) error
		}{
			{"Versions", r.versions}, {"Node", r.node}, {"LocalAPI status", r.status}, {"Preferences", r.prefs},
			{"Netcheck", r.netcheck}, {"Interfaces, routes and rules of the pod", r.network}, {"Log", r.log},
		} {
			var text bytes.Buffer
			err := section.write(ctx, &text)
			if err != nil {
				fmt.Fprintf(&text, "not known: %v\n", err)
			}
			r.sections = append(r.sections, "## "+section.title+"\n\n"+text.String())
		}
		_, err = fmt.Fprintf(out.stdout, "# Report on the tailnet node of pod %s\n\nMade on %s by tailscale-nri bugreport. Nothing was uploaded, to Tailscale or anybody else:\nthis text is all there is. It holds no private key.\n\n%s",
			c.name, time.Now().UTC().Format(time.RFC3339), strings.Join(r.sections, "\n"))
		return err
	}
}

// bugReport is a report while it is being made.
type bugReport struct {
	c        *podClient
	v        engine.PodView
	peers    bool
	sections []string
}

func (r *bugReport) versions(ctx context.Context, w io.Writer) error {
	if err := buildinfo.Print(w); err != nil {
		return err
	}
	host, _ := os.Hostname()
	fmt.Fprintf(w, "kernel %s\nhost %s\n", doctor.KernelRelease(), host)
	code, body, err := statussocket.Fetch(ctx, r.c.socket, statussocket.AskRuntime)
	if err != nil {
		return err
	}
	if code != http.StatusOK {
		return fmt.Errorf("asking for the container runtime: %d", code)
	}
	var is statussocket.RuntimeInfo
	if err := json.Unmarshal(body, &is); err != nil {
		return fmt.Errorf("reading what the container runtime is: %w", err)
	}
	fmt.Fprintf(w, "container runtime %s\n", cmp.Or(strings.TrimSpace(is.Name+" "+is.Version), "none: not registered"))
	if _, text, err := statussocket.Fetch(ctx, r.c.socket, statussocket.AskReady); err == nil {
		fmt.Fprintf(w, "serving process: %s\n", text)
	}
	return nil
}

func (r *bugReport) node(_ context.Context, w io.Writer) error { return printJSON(w, r.v) }

func (r *bugReport) status(ctx context.Context, w io.Writer) error {
	st, err := r.c.Status(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "Health: %s\nPeers: %d, %d of them with a session\n\n", cmp.Or(strings.Join(st.Health, "; "), "no warnings"), len(st.Peer), sessions(st))
	if !r.peers {
		st.Peer, st.User = nil, nil
	}
	return printJSON(w, st)
}

// sessions counts the peers with which the node has exchanged keys.
func sessions(st *ipnstate.Status) (n int) {
	for _, p := range st.Peer {
		if !p.LastHandshake.IsZero() {
			n++
		}
	}
	return n
}

func (r *bugReport) prefs(ctx context.Context, w io.Writer) error {
	p, err := r.c.GetPrefs(ctx)
	if err != nil {
		return err
	}
	return printJSON(w, p)
}

func (r *bugReport) netcheck(ctx context.Context, w io.Writer) error {
	n, err := r.c.netcheck(ctx)
	if err != nil {
		return err
	}
	dm, err := r.c.CurrentDERPMap(ctx)
	if err != nil {
		return err
	}
	printNodeNetcheck(w, r.c.name, dm, n)
	return nil
}

// network reads the pod's netns from this process.
func (r *bugReport) network(_ context.Context, w io.Writer) error {
	v, err := r.v.NetNS.Inspect()
	if err != nil {
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, l := range v.Links {
		fmt.Fprintf(tw, "link\t%s\t%s\tMTU %d\tup %v\t%v\n", l.Name, l.Type, l.MTU, l.Up, l.Addrs)
	}
	slices.SortStableFunc(v.Routes, func(a, b engine.HostRoute) int { return cmp.Compare(a.Table, b.Table) })
	for _, route := range v.Routes {
		fmt.Fprintf(tw, "route\t%v\t%s\tdev %s\ttable %d\tmetric %d\n", route.Dst, route.Type, cmp.Or(route.Link, "-"), route.Table, route.Metric)
	}
	for _, rule := range v.Rules {
		version := "IPv4"
		if rule.V6 {
			version = "IPv6"
		}
		fmt.Fprintf(tw, "rule\t%s\t%d\t%s\n", version, rule.Priority, rule.Text)
	}
	return tw.Flush()
}

// log says where there is one.
func (r *bugReport) log(_ context.Context, w io.Writer) error {
	_, err := fmt.Fprintf(w, "It is kept by the container runtime, and not here:\n  kubectl -n tailscale-nri logs AGENT | grep uid=%s\n", r.v.UID)
	return err
}
