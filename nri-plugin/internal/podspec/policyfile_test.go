// SPDX-License-Identifier: BSD-3-Clause

package podspec

import (
	"slices"
	"strings"
	"testing"

	"tailscale.com/util/dnsname"

	"tailscale-nri/nri-plugin/internal/plugintest"
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
		{"no YAML", "rules:\n\t- a", []string{` is not YAML: yaml: line 2`}},
		{"a star without quotes", "rules:\n- namespaces: [*]", []string{` is not YAML: |in quotes`}},
		{"two documents", "rules: []\n---\nrules: []", []string{`, line 2: a second document`}},
		{"list", "- a", []string{`, line 1: write keys and values here`}},
		{"no list", "rules: {}", []string{`, line 1: write a list here`}},
		{"no value", "rules:\n- namespaces:\n  allow:\n", []string{`, line 2: namespaces has no value`, `, line 3: allow has no value`}},
		{"empty namespaces", "rules:\n- namespaces: []", []string{`, line 2: namespaces is empty: leave it out`}},
		{"namespace", "rules:\n- namespaces: [Shop]", []string{`, line 2: namespaces has "Shop": use small letters`}},
		{"number", "rules:\n- namespaces: [7]", []string{`, line 2: 7 is not text in YAML: write it in quotes`}},
		{"label that is no text", "rules:\n- labels: {a: true}", []string{`, line 2: true is not text`}},
		{"label pattern", "rules:\n- labels: {a: 'b-*'}", []string{`, line 2: label a is "b-*": |"*" alone`}},
		{"opt in", "rules:\n- optIn: 'yes'", []string{`, line 2: write true or false`}},
		{"name", "rules:\n- name: a b", []string{`, line 2: name is "a b"`}},
		{"name twice", "rules:\n- name: a\n- name: a", []string{`, line 3: a rule before this one has the name "a"`}},
		{"tag", "defaults:\n  tags: [k8s]", []string{`, line 2: "k8s" is not a tag|tag:name`}},
		{"no tags for a default", "rules:\n- defaults: {tags: []}", []string{`, line 2: tags is empty: name some`}},
		{"tag glob for a default", "defaults:\n  tags: ['tag:*']", []string{`, line 2: "tag:*" is not a tag`}},
		{"tag pattern", "rules:\n- allow:\n    tags: ['*', 'tag:1*', 'tag:a*', x]", []string{
			`, line 3: tags has "*": write tags as tag:name`, `, line 3: tags has "tag:1*"`, `, line 3: tags has "x"`,
		}},
		{"hostname", "hostname: '{namespace}'", []string{`, line 1: hostname is "{namespace}": it has no {pod}`}},
		{"placeholder", "hostname: '{pod}-{node}'", []string{`, line 1: hostname is "{pod}-{node}": "{node}" is not allowed there`}},
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
			_, err := ParsePolicy(testPolicyFile, []byte(tt.text))
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
		if p, err := ParsePolicy(testPolicyFile, []byte(text)); err != nil || len(p.rules) != 0 {
			t.Errorf("%q: %+v, %v", text, p, err)
		}
	}
	p := mustPolicy(t, shopPolicy+"clusterRanges: [100.64.0.0/13, 'fd00::1']\n")
	if len(p.rules) != 3 || len(p.Ranges) != 2 || p.rules[2].allow.tags == nil || p.rules[1].allow.tags != nil {
		t.Errorf("got %+v", p)
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
		p, err := ParsePolicy(testPolicyFile, []byte(text))
		if err != nil {
			if !strings.HasPrefix(err.Error(), testPolicyFile) || !IsPolicyAlone(err) {
				t.Errorf("the error is %q", err)
			}
			return
		}
		d := strict()
		d.Policy = p
		for _, ns := range []string{"shop", "kube-system"} {
			pod, in, err := From(plugintest.SandboxIn(ns, map[string]string{"app": "web", "team": "a"}), d)
			if !in || err != nil {
				continue
			}
			if err := dnsname.ValidLabel(pod.Hostname); err != nil || !slices.ContainsFunc(p.rules, func(r policyRule) bool { return r.optIn }) {
				t.Errorf("%q opted in as %q: %v", ns, pod.Hostname, err)
			}
		}
	})
}
