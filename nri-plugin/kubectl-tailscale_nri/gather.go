// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"tailscale-nri/nri-plugin/internal/status"
)

// gathered has the reports of all hosts, narrowed to the request.
type gathered struct {
	reports  []status.Report // of the hosts that have an agent, by name
	unserved []status.Report // of those that have none
	notes    []string        // what could not be looked at for lack of a right
	named    []string        // pods that were asked for by name, NAMESPACE/POD
}

// stateUnknown is a node's whose host does not answer: it may be Running.
const stateUnknown = "Unknown"

// gather asks all agents, and holds what they say against the cluster's nodes and
// pods as far as the user may list them.
func gather(ctx context.Context, k kubectl, o options) (*gathered, error) {
	var (
		g                            = new(gathered)
		agents                       []pod
		note                         string
		nodes                        list[node]
		pods                         []pod
		agentsErr, nodesErr, podsErr error
		all                          sync.WaitGroup
	)
	all.Go(func() { agents, note, agentsErr = k.findAgents(ctx, o.agentNamespace, "") })
	all.Go(func() { nodesErr = k.get(ctx, &nodes, "nodes") })
	all.Go(func() { pods, podsErr = k.expected(ctx, o) })
	all.Wait()
	switch {
	case agentsErr != nil:
		return nil, agentsErr
	case len(agents) == 0:
		return nil, errNoAgents
	case podsErr != nil && (o.selects() || !isForbidden(podsErr)):
		return nil, fmt.Errorf("looking for pods: %w", podsErr)
	case note != "":
		g.notes = append(g.notes, note)
	}
	if podsErr != nil {
		g.notes = append(g.notes, "pods that opted in and have no node are not looked for: "+podsErr.Error())
	}
	if nodesErr != nil {
		g.notes = append(g.notes, notLookedFor(nodesErr))
	}
	hosts := byHost(agents)
	if len(o.args) > 0 {
		for _, p := range pods {
			g.named = append(g.named, p.name())
		}
	}
	if o.selects() {
		of := hostsOf(pods)
		hosts = only(hosts, of)
		nodes.Items = slices.DeleteFunc(nodes.Items, func(n node) bool { return !of[n.Metadata.Name] })
	}
	g.reports = each(hosts, func(host string, agents []pod) status.Report {
		report, _ := k.askHost(ctx, host, agents, o.timeout)
		return report
	})
	g.addUnserved(nodes.Items, hosts, pods)
	if missing := g.unlisted(o, pods); len(missing) > 0 {
		// They were listed first: those that have ended since are not missed.
		if still, err := k.expected(ctx, o); err == nil {
			pods = still
			missing = slices.DeleteFunc(missing, func(p pod) bool { return !slices.ContainsFunc(still, p.is) })
		}
		g.addMissing(missing)
	}
	g.narrow(o, pods)
	return g, ctx.Err()
}

// notLookedFor is the note of a user who may not list nodes.
func notLookedFor(err error) string {
	return "hosts without an agent are not looked for: " + err.Error()
}

// selects reports whether certain pods were asked for.
func (o options) selects() bool { return o.selector != "" || len(o.args) > 0 }

// expected lists the pods that should be in the answer: those that were asked for,
// or all that opted in.
func (k kubectl) expected(ctx context.Context, o options) ([]pod, error) {
	if len(o.args) > 0 {
		return k.locate(ctx, o.namespace, o.args)
	}
	args := []string{"pods", "-A", unfinished}
	if o.namespace != "" {
		args[1] = "--namespace=" + o.namespace
	}
	if o.selector != "" {
		args = append(args, "--selector="+o.selector)
	}
	var pods list[pod]
	err := k.get(ctx, &pods, args...)
	return slices.DeleteFunc(pods.Items, func(p pod) bool {
		return o.selector == "" && !p.hasOptedIn() || p.host() == ""
	}), err
}

// locate finds pods by their names, NAMESPACE/POD, or POD for one of namespace, or
// of the current context's where that is "".
func (k kubectl) locate(ctx context.Context, namespace string, names []string) (pods []pod, err error) {
	in := make(map[string][]string)
	for _, arg := range names {
		ns, name, both := strings.Cut(arg, "/")
		if !both {
			ns, name = namespace, arg
		}
		if name == "" || strings.Contains(name, "/") || both && ns == "" {
			return nil, fmt.Errorf("%q is not a pod: write NAMESPACE/POD or POD", arg)
		}
		in[ns] = append(in[ns], name)
	}
	for ns, names := range in {
		args := append([]string{"pods"}, names...)
		if ns != "" {
			args = append(args, "--namespace="+ns)
		}
		var found list[pod]
		if err := k.get(ctx, &found, args...); err != nil {
			return nil, err
		}
		pods = append(pods, found.Items...)
	}
	return pods, nil
}

func hostsOf(pods []pod) map[string]bool {
	hosts := make(map[string]bool)
	for _, p := range pods {
		hosts[p.host()] = true
	}
	return hosts
}

// only returns the requested hosts.
func only(hosts map[string][]pod, wanted map[string]bool) map[string][]pod {
	some := make(map[string][]pod)
	for host, agents := range hosts {
		if wanted[host] {
			some[host] = agents
		}
	}
	return some
}

// addUnserved adds the hosts that have no agent: nodes of the cluster that should
// have one, and those of pods that opted in.
func (g *gathered) addUnserved(nodes []node, served map[string][]pod, pods []pod) {
	states := make(map[string]string)
	for _, n := range nodes {
		states[n.Metadata.Name] = n.state()
	}
	wanted := hostsOf(pods)
	for _, n := range nodes {
		if n.isServed() {
			wanted[n.Metadata.Name] = true
		}
	}
	for host := range wanted {
		if host == "" || served[host] != nil {
			continue
		}
		r := silentHost(host)
		r.Message = joined("no agent is there", states[host])
		g.unserved = append(g.unserved, r)
	}
	slices.SortFunc(g.unserved, func(a, b status.Report) int { return cmp.Compare(a.Host, b.Host) })
	for i, r := range g.reports {
		if r.Error != "" && states[r.Host] != "" {
			g.reports[i].Error += "; " + states[r.Host]
		}
	}
}

// unlisted are the pods that no agent lists and that were asked for by name, or
// opted in.
func (g *gathered) unlisted(o options, pods []pod) (missing []pod) {
	for _, p := range pods {
		r, _ := g.reportOf(p.host())
		switch {
		case p.Metadata.DeletionTimestamp != "", len(o.args) == 0 && !p.hasOptedIn():
		case !slices.ContainsFunc(r.Nodes, p.isNode):
			missing = append(missing, p)
		}
	}
	return missing
}

// is reports whether both are the same pod.
func (p *pod) is(other pod) bool {
	return other.Metadata.UID == p.Metadata.UID && other.Metadata.DeletionTimestamp == ""
}

// isNode reports whether n is the pod's.
func (p *pod) isNode(n status.Node) bool {
	return n.Namespace == p.Metadata.Namespace && n.Pod == p.Metadata.Name && (n.UID == "" || n.UID == p.runtimeUID())
}

// reportOf returns the report of a host, and whether the host has an agent. A pod that is not
// scheduled has a host without a name.
func (g *gathered) reportOf(host string) (r *status.Report, served bool) {
	isHost := func(r status.Report) bool { return r.Host == host }
	if i := slices.IndexFunc(g.reports, isHost); i >= 0 {
		return &g.reports[i], true
	}
	i := slices.IndexFunc(g.unserved, isHost)
	if i < 0 {
		i = len(g.unserved)
		g.unserved = append(g.unserved, silentHost(host))
	}
	return &g.unserved[i], false
}

// addMissing adds what can be said of the nodes of pods that no agent lists.
func (g *gathered) addMissing(pods []pod) {
	for _, p := range pods {
		r, served := g.reportOf(p.host())
		n := status.Node{Namespace: p.Metadata.Namespace, Pod: p.Metadata.Name, UID: p.Metadata.UID}
		n.State, n.Reason = p.whyMissing(r, served)
		r.Nodes = append(r.Nodes, n)
	}
}

// whyMissing says why its host's report does not have the pod.
func (p *pod) whyMissing(r *status.Report, served bool) (state, reason string) {
	describe := fmt.Sprintf("kubectl describe pod -n %s %s says why", p.Metadata.Namespace, p.Metadata.Name)
	switch {
	case p.Status.Phase == "Succeeded" || p.Status.Phase == "Failed":
		return status.NoNode, "the pod has ended"
	case r.Host == "":
		return status.Pending, "it is not scheduled to a host: " + describe
	case !p.hasOptedIn() && r.Error == "":
		return status.NoNode, "it has not opted in: its annotation " + annotationEnabled + " is not \"true\""
	case r.Error != "":
		return stateUnknown, "its host does not answer"
	case !served:
		return status.NoNode, "its host has no agent"
	case p.Status.PodIP == "":
		return status.Pending, "its sandbox is not made yet; if that lasts, " + describe
	}
	return status.NoNode, "its host's agent does not know it"
}

// narrow leaves no other pods than those that were asked for.
func (g *gathered) narrow(o options, pods []pod) {
	for _, reports := range [][]status.Report{g.reports, g.unserved} {
		for i := range reports {
			reports[i].Nodes = slices.DeleteFunc(reports[i].Nodes, func(n status.Node) bool {
				return o.selects() && !slices.ContainsFunc(pods, func(p pod) bool { return p.name() == n.Namespace+"/"+n.Pod }) ||
					o.namespace != "" && !o.selects() && n.Namespace != o.namespace
			})
		}
	}
}
