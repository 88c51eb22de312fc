// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tailscale.com/util/dnsname"

	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
)

// TestParsePolicyRefuses: each mistake is one line of the error, with the file, the
// line and what to write.
func TestParsePolicyRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []string // one for each line of the error, after the file
	}{
		{"unknown key", "rules: []\nrule: []", []string{`, line 2: unknown key "rule": write one of clusterRanges, defaults, hostname, rules`}},
		{"unknown key of a rule", "rules:\n- name: a\n  namespace: [x]", []string{`, line 3: unknown key "namespace": write one of allow,`}},
		{"unknown key of allow", "rules:\n- allow:\n    tag: ['tag:*']", []string{`, line 3: unknown key "tag": write one of features, hostnames, profiles, tags`}},
		{"twice", "rules: []\nhostname: '{pod}'\nrules: []", []string{`, line 3: key "rules" is there twice, first in line 1`}},
		{"twice in a rule", "rules:\n- optIn: true\n  optIn: false", []string{`, line 3: key "optIn" is there twice, first in line 2`}},
		{"label twice", "rules:\n- labels:\n    a: b\n    a: c", []string{`, line 4: key "a" is there twice`}},
		{"merge key", "rules:\n- &a {optIn: true}\n- {<<: *a}", []string{`, line 3: unknown key "<<"`}},
		{"alias", "rules:\n- &a {optIn: true}\n- *a", []string{`, line 3: write keys and values here`}},
		{"no YAML", "rules:\n\t- a", []string{` is no YAML: yaml: line 2`}},
		{"a star without quotes", "rules:\n- namespaces: [*]", []string{` is no YAML: |in quotes`}},
		{"two documents", "rules: []\n---\nrules: []", []string{`, line 2: a second document`}},
		{"list", "- a", []string{`, line 1: write keys and values here`}},
		{"no list", "rules: {}", []string{`, line 1: write a list here`}},
		{"no value", "rules:\n- namespaces:\n  allow:\n", []string{`, line 2: namespaces has no value`, `, line 3: allow has no value`}},
		{"empty namespaces", "rules:\n- namespaces: []", []string{`, line 2: namespaces is empty: leave it out`}},
		{"namespace", "rules:\n- namespaces: [Shop]", []string{`, line 2: namespaces has "Shop": use small letters`}},
		{"number", "rules:\n- namespaces: [7]", []string{`, line 2: 7 is no text for YAML: write it in quotes`}},
		{"label that is no text", "rules:\n- labels: {a: true}", []string{`, line 2: true is no text`}},
		{"label pattern", "rules:\n- labels: {a: 'b-*'}", []string{`, line 2: label a is "b-*": |"*" alone`}},
		{"opt in", "rules:\n- optIn: 'yes'", []string{`, line 2: write true or false`}},
		{"name", "rules:\n- name: a b", []string{`, line 2: name is "a b"`}},
		{"name twice", "rules:\n- name: a\n- name: a", []string{`, line 3: a rule before this one has the name "a"`}},
		{"tag", "defaults:\n  tags: [k8s]", []string{`, line 2: "k8s" is no tag|tag:name`}},
		{"no tags for a default", "rules:\n- defaults: {tags: []}", []string{`, line 2: tags is empty: name some`}},
		{"tag glob for a default", "defaults:\n  tags: ['tag:*']", []string{`, line 2: "tag:*" is no tag`}},
		{"tag pattern", "rules:\n- allow:\n    tags: ['*', 'tag:1*', 'tag:a*', x]", []string{
			`, line 3: tags has "*": write tags as tag:name`, `, line 3: tags has "tag:1*"`, `, line 3: tags has "x"`,
		}},
		{"hostname", "hostname: '{namespace}'", []string{`, line 1: hostname is "{namespace}": it has no {pod}`}},
		{"placeholder", "hostname: '{pod}-{node}'", []string{`, line 1: hostname is "{pod}-{node}": "{node}" cannot stand there`}},
		{"hostnames", "rules:\n- allow: {hostnames: ['a.b']}", []string{`, line 2: hostnames has "a.b"`}},
		{"feature", "rules:\n- allow: {features: [serve]}", []string{`, line 2: features has "serve": there is no such feature|advertise-routes|shields-up`}},
		{"default feature", "defaults:\n  features: {sheilds-up: true}", []string{`, line 2: unknown feature "sheilds-up"|shields-up`}},
		{"value of one", "defaults:\n  features:\n    shields-up: yes please", []string{`, line 3: feature shields-up is "yes please": say "true"`}},
		{"list for one", "defaults:\n  features:\n    shields-up: [true]", []string{`, line 3: feature shields-up needs the value`}},
		{"profile", "defaults: {profile: My Own}", []string{`, line 1: profile is "My Own"`}},
		{"range", "clusterRanges:\n- 10.0.0.1/8\n- x", []string{`, line 2: clusterRanges has "10.0.0.1/8": |10.0.0.0/8`, `, line 3: clusterRanges has "x"`}},
		{"too long", strings.Repeat("#", maxPolicy+1), []string{`: it has 1048577 bytes`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parsePolicy(testPolicyFile, []byte(tt.text))
			if err == nil {
				t.Fatal("no error")
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(tt.want) {
				t.Fatalf("%d lines, want %d: %v", len(lines), len(tt.want), err)
			}
			for i, want := range tt.want {
				if !strings.HasPrefix(lines[i], testPolicyFile) {
					t.Errorf("%q does not name the file", lines[i])
				}
				for part := range strings.SplitSeq(want, "|") {
					if !strings.Contains(lines[i], part) {
						t.Errorf("%q does not say %q", lines[i], part)
					}
				}
			}
		})
	}
}

func TestParsePolicy(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "---\n", "{}", "null", "rules: []"} {
		if p, err := parsePolicy(testPolicyFile, []byte(text)); err != nil || len(p.rules) != 0 {
			t.Errorf("%q: %+v, %v", text, p, err)
		}
	}
	p := mustPolicy(t, shopPolicy+"clusterRanges: [100.64.0.0/13, 'fd00::1']\n")
	if len(p.rules) != 3 || len(p.ranges) != 2 || p.rules[2].allow.tags == nil || p.rules[1].allow.tags != nil {
		t.Errorf("got %+v", p)
	}
}

// TestPolicyFile: the file is part of the configuration.
func TestPolicyFile(t *testing.T) {
	dir := t.TempDir()
	lies := filepath.Join(dir, policyKey)
	plugintest.MountConfig(t, dir, settings.AuthKey, plugintest.Secret, settings.ClusterRanges, "10.0.0.0/8", settings.PolicyFile, lies, policyKey, "clusterRanges: [fd00::/64]\nrules: [{optIn: true}]")
	cfg, err := readConfig(plugintest.WithDir(dir))
	if err != nil || cfg.Policy == nil || len(cfg.Policy.rules) != 1 || fmt.Sprint(cfg.Ranges) != "[10.0.0.0/8 fd00::/64]" {
		t.Errorf("got %+v, %v, %v", cfg.Policy, cfg.Ranges, err)
	}
	plugintest.MountConfig(t, dir, settings.AuthKey, plugintest.Secret, policyKey, "rules: [{optIn: true}]")
	if _, err := readConfig(plugintest.WithDir(dir)); !plugintest.ErrContains(err, lies) || !plugintest.ErrContains(err, "set it to") {
		t.Errorf("one that is not used: %v", err)
	}
	plugintest.MountConfig(t, dir, settings.AuthKey, plugintest.Secret, settings.PolicyFile, lies)
	if _, err := readConfig(plugintest.WithDir(dir)); !plugintest.ErrContains(err, "reading the file that "+settings.PolicyFile+" names") || !plugintest.ErrContains(err, lies) {
		t.Errorf("a missing one: %v", err)
	}
	if _, err := readConfig(plugintest.Environment(map[string]string{settings.AuthKey: plugintest.Secret, settings.PolicyFile: "policy.yaml"})); !plugintest.ErrContains(err, `TS_POLICY_FILE is "policy.yaml": write an absolute path`) {
		t.Errorf("a relative path: %v", err)
	}
}

// watchedPolicy is a watch of a directory that holds a policy.
func watchedPolicy(t *testing.T, text string) (dir string, change func(string, ...string), w *configWatch, book *plugintest.LogBook) {
	t.Helper()
	dir = t.TempDir()
	change = func(text string, more ...string) {
		t.Helper()
		plugintest.MountConfig(t, dir, append(more, settings.AuthKey, plugintest.Secret, settings.PolicyFile, filepath.Join(dir, policyKey), policyKey, text)...)
	}
	change(text)
	w, book = watched(t, dir)
	cfg, err := readConfig(w.getenv)
	if err == nil {
		w.policies, w.ranges = &policies{}, cfg.Policy.ranges
		w.policies.now.Store(cfg.Policy)
	}
	return dir, change, w, book
}

// TestPolicyChanges: a changed policy counts without another start; one that cannot
// be used leaves the last good one, and everybody is told; nothing makes it wider.
func TestPolicyChanges(t *testing.T) {
	dir, change, w, book := watchedPolicy(t, "rules: [{name: first}]")
	names := func() (out []string) {
		for _, r := range w.policies.load().rules {
			out = append(out, r.name)
		}
		return out
	}
	expect := func(want ...string) {
		t.Helper()
		if got := names(); w.look() || !slices.Equal(names(), want) {
			t.Errorf("it begins anew, or the rules are %q after %q, want %q", names(), got, want)
		}
	}
	expect("first")
	change("rules: [{name: second}, {name: third}]")
	expect("second", "third")
	if book.Count("the policy has changed") != 1 || book.Count("rules=2") != 1 {
		t.Errorf("the log says\n%s", book)
	}
	for _, bad := range []string{"rules: [{name: A B}]", "rules:\n- nam: x", "\t"} {
		change(bad)
		expect("second", "third")
		expect("second", "third")
		if ok, text := w.health.ready(); !ok || !strings.Contains(text, "a changed configuration is not used: "+filepath.Join(dir, policyKey)) {
			t.Errorf("ready %v, %q", ok, text)
		}
	}
	if n := book.Count("going on with the old one"); n != 3 {
		t.Errorf("the log says so %d times, want once for each:\n%s", n, book)
	}
	if err := os.Remove(filepath.Join(dir, "..data", policyKey)); err != nil { // it is gone altogether
		t.Fatal(err)
	}
	expect("second", "third")
	if ok, text := w.health.ready(); !ok || !strings.Contains(text, "no such file") {
		t.Errorf("ready %v, %q", ok, text)
	}
	// Other variables that are bad do not keep a good policy from counting.
	change("rules: [{name: fourth}]", settings.LogLevel, "loud")
	expect("fourth")
	change("rules: [{name: fourth}]")
	expect("fourth")
	if ok, text := w.health.ready(); !ok || text != readyText {
		t.Errorf("ready %v, %q", ok, text)
	}
	// One that is written in place is empty before it is whole.
	change("")
	expect("fourth")
	change("rules: [{name: fourth}]")
	expect("fourth")
	change("")
	expect("fourth")
	expect() // it is meant so
	change("rules: [{name: fourth}]")
	expect("fourth")
	// The engine is told its ranges at its start.
	change("clusterRanges: [10.0.0.0/8]\nrules: [{name: fifth}]")
	if !w.look() || book.Count("clusterRanges have changed") != 1 {
		t.Errorf("it does not begin anew:\n%s", book)
	}
}

// TestBrokenPolicyAtStart: the process waits, and is not ready, until the policy is
// mended.
func TestBrokenPolicyAtStart(t *testing.T) {
	_, change, w, book := watchedPolicy(t, "rules: [{nam: x}]")
	if w.look() || w.policies.load() != nil {
		t.Error("it serves")
	}
	if ok, text := w.health.ready(); ok || !strings.Contains(text, `line 1: unknown key "nam"`) {
		t.Errorf("ready %v, %q", ok, text)
	}
	change("rules: [{name: x}]")
	if !w.look() || book.Count("can be used now") != 1 && book.Count("has changed") != 1 {
		t.Errorf("it does not begin:\n%s", book)
	}
}

// TestPolicyWithoutDirectory: a bad policy is waited for also where the environment
// has all the variables; anything else that is bad there ends the process.
func TestPolicyWithoutDirectory(t *testing.T) {
	file := plugintest.WriteFile(t, t.TempDir(), "p.yaml", []byte("rulse: []"))
	_, _, err := loadConfig(plugintest.Environment(map[string]string{settings.AuthKey: plugintest.Secret, settings.PolicyFile: file}))
	if err == nil || !isPolicyAlone(err) {
		t.Errorf("it is not waited for: %v", err)
	}
	_, _, err = loadConfig(plugintest.Environment(map[string]string{settings.AuthKey: plugintest.Secret, settings.PolicyFile: file, settings.LogLevel: "loud"}))
	if err == nil || isPolicyAlone(err) {
		t.Errorf("it is waited for: %v", err)
	}
}

// FuzzPolicy holds that whatever the file says, it is refused with a text that names
// it, or gives pods what a tailnet takes.
func FuzzPolicy(f *testing.F) {
	f.Add(shopPolicy)
	f.Add("hostname: '{pod}-{namespace}'\nclusterRanges: [10.0.0.0/8]\ndefaults: {tags: [tag:a], profile: x}")
	f.Add("rules:\n- &a {optIn: true}\n- *a\n- {<<: *a}")
	f.Add("? [a]\n: b")
	f.Add("rules: [{labels: {a: '*'}, allow: {tags: ['tag:*'], features: ['*']}}]")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parsePolicy(testPolicyFile, []byte(text))
		if err != nil {
			if !strings.HasPrefix(err.Error(), testPolicyFile) || !isPolicyAlone(err) {
				t.Errorf("the error is %q", err)
			}
			return
		}
		d := strict()
		d.policy = p
		for _, ns := range []string{"shop", "kube-system"} {
			pod, in, err := podFrom(plugintest.SandboxIn(ns, map[string]string{"app": "web", "team": "a"}), d)
			if !in || err != nil {
				continue
			}
			if err := dnsname.ValidLabel(pod.Hostname); err != nil || !slices.ContainsFunc(p.rules, func(r policyRule) bool { return r.optIn }) {
				t.Errorf("%q opted in as %q: %v", ns, pod.Hostname, err)
			}
		}
	})
}

// TestStartNamesPolicy: the log says at the start which policy counts.
func TestStartNamesPolicy(t *testing.T) {
	book := plugintest.NewLogBook()
	d := &daemon{cfg: Config{PolicyFile: "/p.yaml", Policy: mustPolicy(t, "rules: [{}, {}]")}, log: slog.New(slog.NewTextHandler(book, nil))}
	d.logStart()
	if book.Count("policy=/p.yaml rules=2") != 1 {
		t.Errorf("the log says\n%s", book)
	}
}
