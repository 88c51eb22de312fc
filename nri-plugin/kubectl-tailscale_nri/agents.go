// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"tailscale-nri/nri-plugin/internal/status"
)

// atOnce is how many agents are asked side by side: each is a kubectl of its own.
const atOnce = 8

// findAgents lists the agents of all hosts, or of one. A user who may not list pods of
// all namespaces gets those of the usual one, and a note that says so.
func (k kubectl) findAgents(ctx context.Context, namespace, host string) (agents []pod, note string, err error) {
	args := []string{"pods", "-l", agentLabel}
	if host != "" {
		args = append(args, "--field-selector=spec.nodeName="+host)
	}
	where := "-A"
	if namespace != "" {
		where = "--namespace=" + namespace
	}
	var pods list[pod]
	err = k.get(ctx, &pods, append(args, where)...)
	if isForbidden(err) && namespace == "" && k.get(ctx, &pods, append(args, "--namespace="+usualNamespace)...) == nil {
		note = fmt.Sprintf("agents are looked for in namespace %s alone (--agent-namespace names another): %v", usualNamespace, err)
		err = nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("looking for agents: %w", err)
	}
	return slices.DeleteFunc(pods.Items, func(p pod) bool { return !p.isAgent() }), note, nil
}

// errNoAgents says that there is no agent to ask.
var errNoAgents = errors.New("no agent found, that is a pod labelled " + agentLabel +
	": tailscale-nri is not installed in this cluster, or not where you may look; --agent-namespace says where")

// byHost sorts agents by their hosts.
func byHost(agents []pod) map[string][]pod {
	hosts := make(map[string][]pod)
	for _, a := range agents {
		hosts[a.host()] = append(hosts[a.host()], a)
	}
	return hosts
}

// answer is an agent's answer.
type answer struct {
	agent  pod
	report status.Report
	err    error // why there is no report
}

// ask asks an agent for its status.
func (k kubectl) ask(ctx context.Context, agent pod, timeout time.Duration) answer {
	a := answer{agent: agent}
	if why := agent.notRunning(); why != "" {
		a.err = errors.New(why)
		return a
	}
	out, err := k.exec(ctx, agent, timeout, "status", "-o", "json")
	if len(out) > 0 {
		// The command fails as well where something is not as it should be.
		if a.report, a.err = status.Decode(out); a.err != nil && err != nil {
			a.err = fmt.Errorf("%w (%w)", err, a.err) // it broke off, for instance
		}
		return a
	}
	a.err = err
	switch {
	case err == nil:
		a.err = errors.New("it says nothing")
	case strings.Contains(err.Error(), "not defined: -o"):
		a.err = fmt.Errorf("it is older than this command, and has no status -o json (image %s)", agent.image())
	}
	return a
}

// The answers of a host's agents, the better the higher: during a roll there are two.
const (
	silent   = iota
	standsBy // it has no nodes, and could serve
	unready  // it has no nodes, and could not
	cutOff   // it has the nodes, and is not ready
	serves   // it does all that it is to do
)

func (a answer) rank() int {
	switch r := a.report; {
	case a.err != nil:
		return silent
	case r.Role == status.Serving && r.Ready:
		return serves
	case r.Role == status.Serving:
		return cutOff
	case r.Ready:
		return standsBy
	}
	return unready
}

// merge makes one report of the answers of a host's agents: that of the one which
// serves. What keeps another from taking over is a warning.
func merge(host string, answers []answer) (report status.Report, serving pod) {
	slices.SortStableFunc(answers, func(a, b answer) int { return cmp.Compare(b.rank(), a.rank()) })
	best := answers[0]
	report = best.report
	report.Host = host
	var others []string
	for _, a := range answers[1:] {
		switch rank := a.rank(); {
		case a.agent.Metadata.DeletionTimestamp != "": // it has ended, or is about to
		case rank == silent:
			others = append(others, a.agent.silence(a.err))
		case rank == unready:
			others = append(others, fmt.Sprintf("agent %s: %s", a.agent.name(), a.report.Message))
		}
	}
	switch best.rank() {
	case silent:
		report = silentHost(host)
		report.Error = best.agent.silence(best.err)
		report.Error = strings.Join(append([]string{report.Error}, others...), "; ")
	case standsBy:
		report.Error = fmt.Sprintf("agent %s says: %s; which one serves is not known", best.agent.name(), report.Message)
		report.Message = ""
		report.Warnings = append(report.Warnings, others...)
	default:
		report.Warnings = append(report.Warnings, others...)
	}
	return report, best.agent
}

// silentHost returns the report of a host without an answer.
func silentHost(host string) status.Report {
	return status.Report{APIVersion: status.APIVersion, Host: host, Nodes: []status.Node{}}
}

// each calls do for each of the hosts, atOnce at a time, and returns what it
// returned, in the order of the hosts' names.
func each[A, T any](hosts map[string]A, do func(host string, of A) T) []T {
	names := slices.Sorted(maps.Keys(hosts))
	results := make([]T, len(names))
	tokens := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for i, name := range names {
		tokens <- struct{}{}
		all.Go(func() {
			results[i] = do(name, hosts[name])
			<-tokens
		})
	}
	all.Wait()
	return results
}

// askHost asks all agents of a host, and merges what they say.
func (k kubectl) askHost(ctx context.Context, host string, agents []pod, timeout time.Duration) (status.Report, pod) {
	answers := make([]answer, len(agents))
	var all sync.WaitGroup
	for i, agent := range agents {
		all.Go(func() { answers[i] = k.ask(ctx, agent, timeout) })
	}
	all.Wait()
	return merge(host, answers)
}
