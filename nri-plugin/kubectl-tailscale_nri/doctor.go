// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"tailscale-nri/nri-plugin/internal/status"
)

// finding is a finding of the doctor, as in its JSON output.
type finding struct {
	Check  string `json:"check"`
	Result string `json:"result"` // ok, warn, fail or unknown
	Seen   string `json:"seen"`
	Remedy string `json:"remedy,omitempty"`
}

const (
	resultOK   = "ok"
	resultWarn = "warn"
	resultFail = "fail"
)

// examined has the doctor's findings on a host.
type examined struct {
	Host     string    `json:"host"`
	Findings []finding `json:"findings"`
	Error    string    `json:"error,omitempty"` // why there are none
}

// showDoctor has the doctor examine all hosts, or one. Of all, it names those without an
// agent, as far as the user may list nodes.
func showDoctor(ctx context.Context, k kubectl, o options, s streams) (int, error) {
	agents, note, err := k.findAgents(ctx, o.agentNamespace, o.node)
	switch {
	case err != nil:
		return 0, err
	case len(agents) == 0 && o.node != "":
		return 0, fmt.Errorf("host %s has no agent: is that the name of a node (kubectl get nodes)?", o.node)
	case len(agents) == 0:
		return 0, errNoAgents
	}
	s.remark(note)
	var nodes list[node]
	if o.node == "" {
		if err := k.get(ctx, &nodes, "nodes"); err != nil {
			s.remark(notLookedFor(err))
		}
	}
	served := byHost(agents)
	hosts := each(served, func(host string, agents []pod) examined {
		return k.examine(ctx, host, agents, o)
	})
	hosts = append(hosts, withoutAgent(nodes.Items, served)...)
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if o.format == status.JSON {
		err = printJSON(s.out, hosts)
	} else {
		err = printFindings(s.out, hosts, o.verbose)
	}
	return doctorCode(hosts), err
}

// examine runs the doctor in the first of a host's agents where that can be done:
// what it looks at is the host, and the same for all.
func (k kubectl) examine(ctx context.Context, host string, agents []pod, o options) examined {
	args := []string{"doctor", "-json"}
	if o.limit > 0 {
		args = append(args, "-device-limit", strconv.Itoa(o.limit))
	}
	e := examined{Host: host, Findings: []finding{}}
	var failed []string
	for _, agent := range agents {
		why := agent.notRunning()
		if why == "" {
			out, err := k.exec(ctx, agent, o.timeout, args...)
			// It ends with 1 where it has found something.
			if json.Unmarshal(out, &e.Findings) == nil {
				return e
			}
			why = "it says nothing that can be read"
			if err != nil {
				why = err.Error()
			}
		}
		failed = append(failed, agent.silence(why))
	}
	e.Error = strings.Join(failed, "; ")
	return e
}

// withoutAgent returns a finding on each node that should have an agent and has none. It
// may be one whose pods need none.
func withoutAgent(nodes []node, served map[string][]pod) (hosts []examined) {
	for _, n := range nodes {
		if !n.isServed() || served[n.Metadata.Name] != nil {
			continue
		}
		hosts = append(hosts, examined{Host: n.Metadata.Name, Findings: []finding{{
			Check: "agent", Result: resultWarn, Seen: joined("no agent is there", n.state()),
			Remedy: "if pods of that host are to be on a tailnet, have the DaemonSet's nodeSelector and tolerations match it",
		}}})
	}
	slices.SortFunc(hosts, func(a, b examined) int { return cmp.Compare(a.Host, b.Host) })
	return hosts
}

// doctorCode returns the doctor's exit code for all hosts together.
func doctorCode(hosts []examined) int {
	code := status.ExitOK
	for _, h := range hosts {
		if h.Error != "" {
			return status.ExitNotAsked
		}
		if slices.ContainsFunc(h.Findings, func(f finding) bool { return f.Result == resultFail }) {
			code = status.ExitTrouble
		}
	}
	return code
}

// printFindings writes a line for each finding, and below it the remedy if it has
// one; what is right is counted, unless all are to be shown.
func printFindings(w io.Writer, hosts []examined, all bool) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { writeRow(tw, cells...) }
	row("HOST", "CHECK", "RESULT", "SEEN, AND REMEDY")
	for _, h := range hosts {
		if h.Error != "" {
			row(h.Host, "-", "unknown", h.Error)
			continue
		}
		right := 0
		for _, f := range h.Findings {
			if f.Result == resultOK && !all {
				right++
				continue
			}
			row(h.Host, f.Check, f.Result, f.Seen)
			if f.Remedy != "" {
				row("", "", "", "remedy: "+f.Remedy)
			}
		}
		if right > 0 {
			row(h.Host, "-", resultOK, fmt.Sprintf("%d of %d findings; -v shows them", right, len(h.Findings)))
		}
	}
	return tw.Flush()
}

func printJSON(w io.Writer, hosts []examined) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(map[string]any{"apiVersion": status.APIVersion, "hosts": hosts})
}

// writeRow writes a row of a table, without what does not print.
func writeRow(w io.Writer, cells ...string) {
	for i := range cells {
		cells[i] = status.Clean(cells[i])
	}
	fmt.Fprintln(w, strings.Join(cells, "\t"))
}
