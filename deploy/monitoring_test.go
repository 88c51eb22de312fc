// SPDX-License-Identifier: BSD-3-Clause

package deploy

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"tailscale-nri/deploy/internal/labtest"
	"tailscale-nri/engine/exporter"
)

const monitoring = "monitoring/"

// TestRules has promtool check the alerts and run their tests.
func TestRules(t *testing.T) {
	promtool := labtest.Built(t, "promtool", "lab-prom")
	for _, args := range [][]string{
		{"check", "rules", "--lint=all", "--lint-fatal", "rules.yaml"},
		{"test", "rules", "rules_test.yaml"},
		{"check", "config", "scrape.yaml"},
	} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = strings.TrimSuffix(monitoring, "/")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %v: %v\n%s", args, err, out)
		}
	}
}

type alert struct {
	Alert, Expr         string
	Labels, Annotations map[string]string
}

func alerts(t *testing.T) (all []alert) {
	t.Helper()
	var file struct{ Groups []struct{ Rules []alert } }
	if err := yaml.Unmarshal([]byte(read(t, monitoring+"rules.yaml")), &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) < 10 {
		t.Fatalf("%d alerts, which are not all", len(all))
	}
	return all
}

// TestAlerts: each alert says how bad it is, what it means and where the guide
// has the remedy; and there is a test in which it fires, and one in which it does
// not.
func TestAlerts(t *testing.T) {
	tests, anchors := read(t, monitoring+"rules_test.yaml"), headings(read(t, guide))
	for _, a := range alerts(t) {
		if s := a.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s: severity %q", a.Alert, s)
		}
		for _, key := range []string{"summary", "description"} {
			if len(a.Annotations[key]) < 20 {
				t.Errorf("%s has no %s", a.Alert, key)
			}
		}
		anchor, ok := strings.CutPrefix(a.Annotations["runbook"], guide+"#")
		if !ok || !slices.Contains(anchors, anchor) {
			t.Errorf("%s: the runbook is %q, and %s has no such heading", a.Alert, a.Annotations["runbook"], guide)
		}
		fires := fmt.Sprintf(`exp_samples: [{labels: 'ALERTS{alertname=%q`, a.Alert)
		quiet := fmt.Sprintf(`- {expr: 'ALERTS{alertname=%q`, a.Alert)
		if !strings.Contains(tests, fires) || !strings.Contains(tests, quiet) {
			t.Errorf("%s: rules_test.yaml lacks a time at which it fires, or one at which it does not", a.Alert)
		}
	}
}

// headings are the anchors of a page's headings.
func headings(text string) (anchors []string) {
	for _, m := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(text, -1) {
		plain := regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		anchors = append(anchors, strings.ReplaceAll(plain, " ", "-"))
	}
	return anchors
}

// dashboard is what a test wants to know of Grafana's.
type dashboard struct {
	Templating struct{ List []struct{ Query any } }
	Panels     []struct {
		Title   string
		Targets []struct{ Expr, LegendFormat string }
		GridPos struct{ X, Y, W, H int }
	}
}

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	if err := json.Unmarshal([]byte(read(t, monitoring+"dashboard.json")), &d); err != nil {
		t.Fatal(err)
	}
	if len(d.Panels) < 20 {
		t.Fatalf("%d panels, which are not all", len(d.Panels))
	}
	return d
}

// expressions are all queries of the dashboard and of the alerts, by where they
// are.
func expressions(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, a := range alerts(t) {
		all[a.Alert] = append(all[a.Alert], a.Expr)
	}
	d := readDashboard(t)
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			all[p.Title] = append(all[p.Title], target.Expr)
		}
	}
	for _, v := range d.Templating.List {
		if q, ok := v.Query.(map[string]any); ok {
			all["variables"] = append(all["variables"], q["query"].(string))
		}
	}
	return all
}

// The names and labels of a query, and the values of labels.
var (
	metricName = regexp.MustCompile(`\b` + exporter.Prefix + `[a-z_]+`)
	selector   = regexp.MustCompile(`(` + exporter.Prefix + `[a-z_]+)\{([^}]*)\}`)
	matcher    = regexp.MustCompile(`([a-z_]+)\s*(=~|=|!=|!~)\s*"([^"]*)"`)
	grouping   = regexp.MustCompile(`\b(?:by|on) \(([^)]*)\)`)
)

// ofTheTarget are labels that a scrape adds.
var ofTheTarget = []string{"job", "instance"}

// TestQueries: what dashboard and alerts ask for is exported, with these labels
// and these values; and what is exported is asked for.
func TestQueries(t *testing.T) {
	asked := map[string]bool{}
	for where, queries := range expressions(t) {
		for _, q := range queries {
			var known []string // labels of the query's metrics
			for _, name := range metricName.FindAllString(q, -1) {
				f, ok := familyOf(name)
				if !ok {
					t.Errorf("%s: %s is not exported", where, name)
					continue
				}
				asked[f.Name] = true
				known = append(known, f.Labels...)
				if f.Kind == exporter.Histogram {
					known = append(known, "le")
				}
				if f.Kind == exporter.Counter && !regexp.MustCompile(`(rate|increase)\(`+name).MatchString(q) {
					t.Errorf("%s: %s is a counter, and the query wants neither its rate nor its increase", where, name)
				}
			}
			for _, m := range selector.FindAllStringSubmatch(q, -1) {
				f, _ := familyOf(m[1])
				for _, l := range matcher.FindAllStringSubmatch(m[2], -1) {
					checkMatcher(t, where, f, l[1], l[3])
				}
			}
			for _, m := range grouping.FindAllStringSubmatch(q, -1) {
				for label := range strings.SplitSeq(m[1], ",") {
					if label = strings.TrimSpace(label); !slices.Contains(append(known, ofTheTarget...), label) {
						t.Errorf("%s groups by %s, which none of its metrics has: %s", where, label, q)
					}
				}
			}
		}
	}
	for _, f := range exporter.Families {
		if !asked[f.Name] {
			t.Errorf("%s is on no panel and in no alert", f.Name)
		}
	}
}

// checkMatcher: the metric has the label, and its value is one that it may have.
func checkMatcher(t *testing.T, where string, f exporter.Family, label, value string) {
	t.Helper()
	known := append(slices.Clone(f.Labels), ofTheTarget...)
	if f.Kind == exporter.Histogram {
		known = append(known, "le")
	}
	if !slices.Contains(known, label) {
		t.Errorf("%s: %s has no label %s", where, f.Name, label)
		return
	}
	if strings.HasPrefix(value, "$") {
		return
	}
	for v := range strings.SplitSeq(value, "|") {
		if values := exporter.Values(f, label); values != nil && !slices.Contains(values, v) {
			t.Errorf("%s: %s of %s is never %q, but %q", where, label, f.Name, v, values)
		}
	}
}

// familyOf is the family that a series belongs to.
func familyOf(name string) (exporter.Family, bool) {
	for _, f := range exporter.Families {
		if f.Name == name && f.Kind != exporter.Histogram {
			return f, true
		}
		if suffix, ok := strings.CutPrefix(name, f.Name); ok && f.Kind == exporter.Histogram &&
			slices.Contains([]string{"_bucket", "_count", "_sum"}, suffix) {
			return f, true
		}
	}
	return exporter.Family{}, false
}

// TestDashboard: a legend shows labels that its query leaves, and no panel lies on
// another.
func TestDashboard(t *testing.T) {
	shown := regexp.MustCompile(`\{\{([a-z_]+)\}\}`)
	taken := map[[2]int]string{}
	for _, p := range readDashboard(t).Panels {
		for _, target := range p.Targets {
			for _, m := range shown.FindAllStringSubmatch(target.LegendFormat, -1) {
				left := slices.Clone(ofTheTarget)
				if groups := grouping.FindAllStringSubmatch(target.Expr, -1); groups != nil {
					left = strings.Split(strings.ReplaceAll(groups[0][1], " ", ""), ",")
				} else if f, ok := familyOf(metricName.FindString(target.Expr)); ok {
					left = append(left, f.Labels...)
				}
				if !slices.Contains(left, m[1]) {
					t.Errorf("%s: the legend shows %s, the query leaves %v", p.Title, m[1], left)
				}
			}
		}
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if other := taken[at]; other != "" || at[0] >= 24 {
					t.Fatalf("%s lies on %q, or outside", p.Title, other)
				}
				taken[at] = p.Title
			}
		}
	}
}

// TestMetricsTable holds the page's table against the exporter, word by word.
func TestMetricsTable(t *testing.T) {
	var rows []string
	for line := range strings.Lines(read(t, monitoring+"README.md")) {
		if strings.HasPrefix(line, "| `"+exporter.Prefix) {
			rows = append(rows, strings.TrimSpace(line))
		}
	}
	var want []string
	for _, f := range exporter.Families {
		labels := ""
		if len(f.Labels) > 0 {
			labels = "`" + strings.Join(f.Labels, "`, `") + "`"
		}
		want = append(want, fmt.Sprintf("| `%s` | %s | %s | %s |", f.Name, f.Kind, labels, f.Help))
	}
	for _, row := range want {
		if !slices.Contains(rows, row) {
			t.Errorf("monitoring/README.md lacks the row\n%s", row)
		}
	}
	if len(rows) != len(want) {
		t.Errorf("monitoring/README.md has %d rows, the exporter %d metrics", len(rows), len(want))
	}
}

// TestNoPorts: a port that a pod in the host's network declares is the host's, and
// no second such pod is put on a host. A roll, which has two there, would wait
// forever.
func TestNoPorts(t *testing.T) {
	for name, all := range renderings(t) {
		if ports := all.container(t)["ports"]; ports != nil {
			t.Errorf("%s declares ports: %v", name, ports)
		}
	}
	for _, o := range chart(t, "--set", "config.TS_METRICS_ADDR=:9464") {
		if o["kind"] == "DaemonSet" && strings.Contains(fmt.Sprint(o), "containerPort") {
			t.Error("the chart declares a port")
		}
	}
}

// TestScrapeExamples: all examples agree on the job, the namespace and the port.
func TestScrapeExamples(t *testing.T) {
	for _, name := range []string{"scrape.yaml", "scrape-kubernetes.yaml"} {
		var file map[string]any
		if err := yaml.UnmarshalStrict([]byte(read(t, monitoring+name)), &file); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if job := at(t, file, "scrape_configs", 0, "job_name"); job != "tailscale-nri" {
			t.Errorf("%s: the job is %v", name, job)
		}
		if !strings.Contains(read(t, monitoring+name), ":9464") {
			t.Errorf("%s: no port 9464", name)
		}
	}
	operator := parse(t, []byte(read(t, monitoring+"servicemonitor.yaml")))
	base := kustomize(t, "base")
	service, monitor := operator["Service/tailscale-nri-metrics"], operator["ServiceMonitor/tailscale-nri"]
	for key, value := range at(t, service, "spec", "selector").(map[string]any) {
		if got := at(t, base["DaemonSet/tailscale-nri"], "spec", "template", "metadata", "labels").(map[string]any)[key]; got != value {
			t.Errorf("the Service wants %s: %v of a pod, which has %v", key, value, got)
		}
	}
	for key, value := range at(t, monitor, "spec", "selector", "matchLabels").(map[string]any) {
		if got := at(t, service, "metadata", "labels").(map[string]any)[key]; got != value {
			t.Errorf("the ServiceMonitor wants %s: %v of a Service, which has %v", key, value, got)
		}
	}
	if at(t, service, "spec", "ports", 0, "name") != at(t, monitor, "spec", "endpoints", 0, "port") {
		t.Error("the ServiceMonitor's port is not the Service's")
	}
	for name, o := range operator {
		if at(t, o, "metadata", "namespace") != "tailscale-nri" {
			t.Errorf("%s is elsewhere", name)
		}
	}
}
