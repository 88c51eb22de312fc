// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"tailscale-nri/nri-plugin/internal/status"
)

func decode[T any](t *testing.T, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// agentOf is an agent's pod whose container is in a state, as JSON has it.
func agentOf(t *testing.T, name, state string) pod {
	return decode[pod](t, fmt.Sprintf(`{"kind":"Pod","metadata":{"name":%q,"namespace":"tailscale-nri"},
		"spec":{"nodeName":"n1","containers":[{"name":"proxy","image":"p"},{"name":"tailscale-nri","image":"i:1"}]},
		"status":{"phase":"Running","containerStatuses":[{"name":"proxy","state":{"running":{}}},{"name":"tailscale-nri","state":%s}]}}`, name, state))
}

// TestPods reads pods as kubectl says them.
func TestPods(t *testing.T) {
	const waiting = `{"waiting":{"reason":"CrashLoopBackOff","message":"back-off 10s\nrestarting"}}`
	for state, want := range map[string]string{
		`{"running":{"startedAt":"2031-05-06T07:08:09Z"}}`: "",
		waiting: "CrashLoopBackOff: back-off 10s restarting",
		`{"terminated":{"reason":"Error","message":"bad"}}`: "ended: Error: bad",
	} {
		a := agentOf(t, "a", state)
		if got := a.notRunning(); got != want || a.image() != "i:1" || a.host() != "n1" {
			t.Errorf("%s: %q, want %q; %+v", state, got, want, a)
		}
	}
	pinned := decode[pod](t, `{"spec":{"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[
		{"matchExpressions":[{"key":"type","operator":"NotIn","values":["virtual-kubelet"]}],
		"matchFields":[{"key":"metadata.name","operator":"In","values":["n7"]}]}]}}},"containers":[{"name":"other"}]},
		"status":{"phase":"Pending","conditions":[{"type":"PodScheduled","status":"False","reason":"Unschedulable","message":"Insufficient cpu"}]}}`)
	if pinned.host() != "n7" || pinned.notRunning() != "Unschedulable: Insufficient cpu" || pinned.isAgent() {
		t.Errorf("a pod that waits for its host: %q, %q", pinned.host(), pinned.notRunning())
	}
	if one := decode[list[pod]](t, `{"kind":"Pod","metadata":{"name":"x"}}`); len(one.Items) != 1 || one.Items[0].Metadata.Name != "x" {
		t.Errorf("a single pod: %+v", one)
	}
	if none := decode[list[pod]](t, `{"kind":"List","items":[]}`); len(none.Items) != 0 {
		t.Errorf("no pod: %+v", none)
	}
}

func TestNodes(t *testing.T) {
	for text, want := range map[string]string{
		`{"status":{"conditions":[{"type":"MemoryPressure","status":"False"},{"type":"Ready","status":"True"}]}}`: "true ",
		`{"metadata":{"labels":{"kubernetes.io/os":"windows"}}}`:                                                  "false ",
		`{"metadata":{"labels":{"kubernetes.io/os":"linux","type":"virtual-kubelet"}}}`:                           "false ",
		`{"spec":{"taints":[{"key":"gpu","value":"a","effect":"NoSchedule"},{"key":"x","effect":"NoExecute"},{"key":"node.kubernetes.io/unreachable","effect":"NoExecute"}]},
		  "status":{"conditions":[{"type":"Ready","status":"Unknown","reason":"NodeStatusUnknown","message":"Kubelet stopped posting node status."}]}}`: "true " +
			"the node is NotReady (NodeStatusUnknown: Kubelet stopped posting node status.), taint gpu=a:NoSchedule, taint x:NoExecute",
	} {
		n := decode[node](t, text)
		if got := fmt.Sprint(n.isServed(), " ", n.state()); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

// TestMerge: during a roll, and where one hangs, two agents of a host answer.
func TestMerge(t *testing.T) {
	says := func(name string, r status.Report, err error) answer {
		r.APIVersion, r.Host = status.APIVersion, "machine"
		return answer{agent: agentOf(t, name, `{"running":{}}`), report: r, err: err}
	}
	web := []status.Node{{Namespace: "default", Pod: "web", State: status.Running}}
	serves := says("old", status.Report{Ready: true, Role: status.Serving, Nodes: web}, nil)
	cutOff := says("old", status.Report{Message: "not ready: nothing listens", Role: status.Serving, Nodes: web}, nil)
	bare := says("old", status.Report{Message: "not ready: nothing listens", Role: status.Serving}, nil)
	waits := says("new", status.Report{Ready: true, Role: status.Standby, Message: "standing by: another process serves this host's pods"}, nil)
	lacks := says("new", status.Report{Role: status.Standby, Message: "not ready to take over: nothing listens"}, nil)
	away := says("new", status.Report{}, errors.New("CrashLoopBackOff"))
	ended := says("new", status.Report{}, errors.New("container not found"))
	ended.agent.Metadata.DeletionTimestamp = "2031-05-06T07:08:09Z"
	for _, tt := range []struct {
		name           string
		answers        []answer
		serving        string
		err, more      string // in Error, and in Message or Warnings
		nodes, exitsAs int
	}{
		{"alone", []answer{serves}, "old", "", "", 1, 0},
		{"a roll", []answer{waits, serves}, "old", "", "", 1, 0},
		{"a roll that stops", []answer{lacks, serves}, "old", "", "agent tailscale-nri/new: not ready to take over", 1, 0},
		{"the new one crashes", []answer{away, serves}, "old", "", "agent tailscale-nri/new does not answer: CrashLoopBackOff", 1, 0},
		{"the other has just ended", []answer{ended, serves}, "old", "", "", 1, 0},
		{"both are cut off", []answer{lacks, cutOff}, "old", "", "not ready: nothing listens", 1, 1},
		{"it serves while cut off", []answer{waits, cutOff}, "old", "", "not ready: nothing listens", 1, 1},
		{"it serves no pod yet, and is cut off", []answer{waits, bare}, "old", "", "not ready: nothing listens", 0, 1},
		{"none serves", []answer{waits}, "new", "standing by", "", 0, 2},
		{"misconfigured", []answer{lacks}, "new", "", "not ready to take over", 0, 1},
		{"none answers", []answer{away, ended}, "new", "agent tailscale-nri/new does not answer: CrashLoopBackOff", "", 0, 2},
	} {
		got, agent := merge("n1", slices.Clone(tt.answers))
		more := strings.Join(append(got.Warnings, got.Message), "|")
		if got.Host != "n1" || got.APIVersion != status.APIVersion || agent.Metadata.Name != tt.serving || len(got.Nodes) != tt.nodes ||
			!strings.Contains(got.Error, tt.err) || tt.err == "" && got.Error != "" ||
			!strings.Contains(more, tt.more) || tt.more == "" && more != "" || status.ExitCode([]status.Report{got}) != tt.exitsAs {
			t.Errorf("%s: got %+v of %s", tt.name, got, agent.name())
		}
	}
}

// somePod is one that runs, unless it is changed.
func somePod(name, host string, change func(*pod)) pod {
	var p pod
	p.Metadata.Namespace, p.Metadata.Name, p.Metadata.UID = "default", name, "uid-"+name
	p.Metadata.Annotations = map[string]string{annotationEnabled: "true"}
	p.Spec.NodeName, p.Status.Phase, p.Status.PodIP = host, "Running", "10.0.0.1"
	if change != nil {
		change(&p)
	}
	return p
}

// TestMissing holds the cluster's pods and nodes against what agents say.
func TestMissing(t *testing.T) {
	report := func(host, err string, pods ...string) status.Report {
		r := status.Report{Host: host, Version: "v1", Ready: err == "", Error: err}
		for _, p := range pods {
			r.Nodes = append(r.Nodes, status.Node{Namespace: "default", Pod: p, UID: "uid-" + p, State: status.Running})
		}
		return r
	}
	pods := []pod{
		somePod("listed", "n1", nil),
		somePod("static", "n1", func(p *pod) { p.Metadata.Annotations[annotationHash], p.Metadata.UID = "uid-static", "mirror" }),
		somePod("again", "n1", func(p *pod) { p.Metadata.UID = "another" }), // created again under its name
		somePod("unknown", "n1", nil),
		somePod("begins", "n1", func(p *pod) { p.Status.PodIP, p.Status.Phase = "", "Pending" }),
		somePod("ends", "n1", func(p *pod) { p.Metadata.DeletionTimestamp = "2031-05-06T07:08:09Z" }),
		somePod("plain", "n1", func(p *pod) { p.Metadata.Annotations = nil }),
		somePod("cut-off", "n2", nil),
		somePod("unserved", "n3", nil),
		somePod("waits", "", nil),
	}
	nodes := []node{
		decode[node](t, `{"metadata":{"name":"n1"}}`),
		decode[node](t, `{"metadata":{"name":"n2"},"status":{"conditions":[{"type":"Ready","status":"Unknown","reason":"Gone"}]}}`),
		decode[node](t, `{"metadata":{"name":"n3"},"spec":{"taints":[{"key":"gpu","effect":"NoSchedule"}]}}`),
		decode[node](t, `{"metadata":{"name":"n4"}}`),
		decode[node](t, `{"metadata":{"name":"win","labels":{"kubernetes.io/os":"windows"}}}`),
	}
	look := func(o options) *gathered {
		g := &gathered{reports: []status.Report{report("n1", "", "listed", "static", "again", "other"), report("n2", "no answer within 20s")}}
		g.addUnserved(nodes, map[string][]pod{"n1": {{}}, "n2": {{}}}, pods)
		g.addMissing(g.unlisted(o, pods))
		return g
	}
	lines := func(g *gathered) (lines []string) {
		for _, r := range g.all() {
			lines = append(lines, strings.TrimSpace(r.Host+": "+r.Error+r.Message))
			for _, n := range r.Nodes {
				lines = append(lines, strings.TrimSpace(n.Pod+" "+n.State+" "+n.Reason))
			}
		}
		return lines
	}
	common := []string{
		"n1:", "listed Running", "static Running", "again Running", "other Running",
		"again NoNode its host's agent does not know it", "unknown NoNode its host's agent does not know it",
		"begins Pending its sandbox is not made yet; if that lasts, kubectl describe pod -n default begins says why",
	}
	rest := []string{
		"n2: no answer within 20s; the node is NotReady (Gone)", "cut-off Unknown its host does not answer",
		"n3: no agent is there: taint gpu:NoSchedule", "unserved NoNode its host has no agent",
		"n4: no agent is there",
		":", "waits Pending it is not scheduled to a host: kubectl describe pod -n default waits says why",
	}
	if got, want := lines(look(options{})), slices.Concat(common, rest); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	named := slices.Concat(common, []string{`plain NoNode it has not opted in: its annotation tailscale.com/enabled is not "true"`}, rest)
	g := look(options{args: []string{"any"}})
	if got := lines(g); !slices.Equal(got, named) {
		t.Errorf("pods by their names: got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(named, "\n"))
	}
	if g.narrow(options{args: []string{"any"}}, pods[:1]); len(g.reports[0].Nodes) != 1 || g.reports[0].Nodes[0].Pod != "listed" {
		t.Errorf("one of them: %+v", g.reports[0].Nodes)
	}
	g = look(options{})
	if g.narrow(options{namespace: "team"}, nil); len(g.reports[0].Nodes) > 0 {
		t.Errorf("of another namespace: %+v", g.reports[0].Nodes)
	}
}

// TestExitCode: a host without an agent counts where a pod asks for one.
func TestExitCode(t *testing.T) {
	fine := status.Report{Host: "n1", Ready: true}
	bare := status.Report{Host: "n2", Message: "no agent is there"}
	asked := bare
	asked.Nodes = []status.Node{{State: status.NoNode}}
	ended := fine
	ended.Nodes = []status.Node{{Namespace: "a", Pod: "b", State: status.Leaving}}
	for want, g := range map[int]gathered{status.ExitOK: {reports: []status.Report{ended}}, status.ExitTrouble: {reports: []status.Report{ended}, named: []string{"a/b"}}} {
		if got := g.exitCode(); got != want {
			t.Errorf("%+v: %d, want %d", g, got, want)
		}
	}
	for want, g := range map[int]gathered{
		status.ExitOK:       {reports: []status.Report{fine}, unserved: []status.Report{bare}},
		status.ExitTrouble:  {reports: []status.Report{fine}, unserved: []status.Report{asked}},
		status.ExitNotAsked: {reports: []status.Report{fine, {Host: "n3", Error: "away"}}, unserved: []status.Report{asked}},
	} {
		if got := g.exitCode(); got != want {
			t.Errorf("%+v: %d, want %d", g, got, want)
		}
	}
}

// TestFindings: what is right is counted, and what is not has its host next to it.
func TestFindings(t *testing.T) {
	hosts := []examined{
		{Host: "n1", Findings: []finding{{"kernel", "ok", "6.12", ""}, {"clock", "warn", "5s\x1b late", "set the clock"}}},
		{Host: "n2", Error: "agent x does not answer: away"},
	}
	var out strings.Builder
	if err := printFindings(&out, hosts, false); err != nil {
		t.Fatal(err)
	}
	if want := `HOST  CHECK  RESULT   SEEN, AND REMEDY
n1    clock  warn     5s  late
                      remedy: set the clock
n1    -      ok       1 of 2 findings; -v shows them
n2    -      unknown  agent x does not answer: away
`; out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
	out.Reset()
	if err := printFindings(&out, hosts[:1], true); err != nil || !strings.Contains(out.String(), "kernel  ok      6.12") || strings.Contains(out.String(), "-v") {
		t.Errorf("all: %v\n%s", err, &out)
	}
	failing := examined{Findings: []finding{{Result: "fail"}}}
	if doctorCode(hosts) != 2 || doctorCode(hosts[:1]) != 0 || doctorCode([]examined{failing}) != 1 {
		t.Errorf("exit codes: %d, %d, %d", doctorCode(hosts), doctorCode(hosts[:1]), doctorCode([]examined{failing}))
	}
}

// TestWithoutAgent: a host that should have an agent and has none is in the findings, and
// is no fault by itself.
func TestWithoutAgent(t *testing.T) {
	nodes := decode[list[node]](t, `{"kind":"List","items":[
		{"metadata":{"name":"n9"},"spec":{"taints":[{"key":"gpu","effect":"NoSchedule"}]}},
		{"metadata":{"name":"n1"}},
		{"metadata":{"name":"win","labels":{"kubernetes.io/os":"windows"}}},
		{"metadata":{"name":"n5"}}]}`)
	hosts := withoutAgent(nodes.Items, map[string][]pod{"n1": {{}}})
	var out strings.Builder
	if err := printFindings(&out, hosts, false); err != nil {
		t.Fatal(err)
	}
	const remedy = "remedy: if pods of that host are to be on a tailnet, have the DaemonSet's nodeSelector and tolerations match it\n"
	if want := "HOST  CHECK  RESULT  SEEN, AND REMEDY\n" +
		"n5    agent  warn    no agent is there\n                     " + remedy +
		"n9    agent  warn    no agent is there: taint gpu:NoSchedule\n                     " + remedy; out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
	if code := doctorCode(hosts); code != status.ExitOK {
		t.Errorf("exit code %d", code)
	}
}
