// SPDX-License-Identifier: BSD-3-Clause

package podspec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"tailscale.com/tailcfg"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/errtext"
	"tailscale-nri/nri-plugin/internal/settings"
)

// maxPolicy is the size limit of a ConfigMap, in bytes.
const maxPolicy = 1 << 20

// policyError is the error of a policy's file, with a line for each mistake.
type policyError struct{ err error }

func (e policyError) Error() string { return e.err.Error() }

func (e policyError) Unwrap() error { return e.err }

// ReadPolicy reads the policy at path; nil if that is "".
func ReadPolicy(path string) (*Policy, error) {
	if path == "" {
		return nil, nil
	}
	var (
		data []byte
		err  error
	)
	// The kubelet removes the directory that a link has led to right after it has
	// put another in its place.
	for range 3 {
		if data, err = os.ReadFile(path); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return nil, policyError{fmt.Errorf("reading the file that %s names: %w: put it there, an empty one is the default policy, or unset the variable", settings.PolicyFile, err)}
	}
	return ParsePolicy(path, data)
}

// ParsePolicy reads a policy. Its error names the file, and the line of each
// mistake.
func ParsePolicy(file string, data []byte) (*Policy, error) {
	if len(data) > maxPolicy {
		return nil, policyError{fmt.Errorf("%s: it has %d bytes, shorten it to %d", file, len(data), maxPolicy)}
	}
	p := &Policy{file: file, Text: string(data)}
	r := &policyReader{file: file}
	if root := r.document(data); root != nil {
		r.fields(root, map[string]func(*yaml.Node){
			"hostname":      func(n *yaml.Node) { p.hostname = r.template(n) },
			"clusterRanges": func(n *yaml.Node) { p.Ranges = list(r, n, r.prefix) },
			"defaults":      func(n *yaml.Node) { p.defaults = r.gifts(n) },
			"rules":         func(n *yaml.Node) { p.rules = list(r, n, r.rule) },
		})
	}
	if len(r.errs) > 0 {
		return nil, policyError{errors.Join(r.errs...)}
	}
	return p, nil
}

// policyReader reads a policy and collects what is wrong with it.
type policyReader struct {
	file  string
	errs  []error
	names []string // of rules
}

func (r *policyReader) bad(n *yaml.Node, format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf("%s, line %d: %s", r.file, n.Line, fmt.Sprintf(format, args...)))
}

// document returns the root of the one document, nil if it is empty or bad.
func (r *policyReader) document(data []byte) *yaml.Node {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		if err = dec.Decode(&more); errors.Is(err, io.EOF) {
			err = nil
		} else if err == nil {
			r.bad(&more, "a second document: keep one, without ---")
			return nil
		}
	}
	if err != nil {
		r.errs = append(r.errs, fmt.Errorf("%s is not YAML: %s (what begins with * stands in quotes)", r.file, errtext.OneLine(err)))
		return nil
	}
	root := doc.Content[0]
	if isNull(root) {
		return nil
	}
	return root
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// fields reads a mapping whose keys are all known.
func (r *policyReader) fields(n *yaml.Node, known map[string]func(*yaml.Node)) {
	r.pairs(n, func(key, value *yaml.Node) {
		read, ok := known[key.Value]
		if !ok {
			var names []string
			for name := range known {
				names = append(names, name)
			}
			slices.Sort(names)
			r.bad(key, "unknown key %q: write one of %s", errtext.Clip(key.Value), strings.Join(names, ", "))
			return
		}
		if isNull(value) {
			r.bad(key, "%s has no value: write one, or remove the key", key.Value)
			return
		}
		read(value)
	})
}

// pairs reads a mapping, in which no key stands twice.
func (r *policyReader) pairs(n *yaml.Node, read func(key, value *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		r.bad(n, "write keys and values here, as key: value")
		return
	}
	lines := map[string]int{}
	for pair := range slices.Chunk(n.Content, 2) {
		key := pair[0]
		switch first, again := lines[key.Value]; {
		case key.Kind != yaml.ScalarNode:
			r.bad(key, "a key is plain text")
		case again:
			r.bad(key, "key %q is there twice, first in line %d: keep one", errtext.Clip(key.Value), first)
		default:
			lines[key.Value] = key.Line
			read(key, pair[1])
		}
	}
}

// list reads a list. It is not nil.
func list[T any](r *policyReader, n *yaml.Node, read func(*yaml.Node) (T, bool)) []T {
	out := []T{}
	if n.Kind != yaml.SequenceNode {
		r.bad(n, "write a list here, as [a, b]")
		return out
	}
	for _, c := range n.Content {
		if v, ok := read(c); ok {
			out = append(out, v)
		}
	}
	return out
}

// text reads a string.
func (r *policyReader) text(n *yaml.Node) (string, bool) {
	switch {
	case n.Kind != yaml.ScalarNode:
		r.bad(n, "write plain text here")
	case n.ShortTag() != "!!str":
		r.bad(n, "%s is not text in YAML: write it in quotes", errtext.Clip(n.Value))
	default:
		return n.Value, true
	}
	return "", false
}

// flag reads true or false.
func (r *policyReader) flag(n *yaml.Node) bool {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" {
		r.bad(n, "write true or false")
	}
	return strings.EqualFold(n.Value, "true")
}

func (r *policyReader) template(n *yaml.Node) (t nameTemplate) {
	s, ok := r.text(n)
	if !ok {
		return t
	}
	t, err := parseTemplate(s)
	if err != nil {
		r.bad(n, "hostname is %q: %v", errtext.Clip(s), err)
	}
	return t
}

func (r *policyReader) prefix(n *yaml.Node) (p netip.Prefix, ok bool) {
	s, ok := r.text(n)
	if !ok {
		return p, false
	}
	p, err := ParseRange(s)
	if err != nil {
		r.bad(n, "clusterRanges has %q: %v", errtext.Clip(s), err)
	}
	return p, err == nil
}

func (r *policyReader) rule(n *yaml.Node) (out policyRule, ok bool) {
	r.fields(n, map[string]func(*yaml.Node){
		"name": func(n *yaml.Node) { out.name = r.name(n) },
		"namespaces": func(n *yaml.Node) {
			if out.namespaces = r.globs(n, "namespaces"); n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
				r.bad(n, "namespaces is empty: leave it out for all of them")
			}
		},
		"labels":   func(n *yaml.Node) { out.labels = r.labels(n) },
		"optIn":    func(n *yaml.Node) { out.optIn = r.flag(n) },
		"defaults": func(n *yaml.Node) { out.defaults = r.gifts(n) },
		"allow":    func(n *yaml.Node) { out.allow = r.allowance(n) },
	})
	return out, true
}

func (r *policyReader) name(n *yaml.Node) string {
	s, ok := r.text(n)
	if !ok {
		return ""
	}
	if err := CheckLabel(s); err != nil {
		r.bad(n, "name is %q: %v", errtext.Clip(s), err)
	}
	if slices.Contains(r.names, s) {
		r.bad(n, "a rule before this one has the name %q too: give each its own", errtext.Clip(s))
	}
	r.names = append(r.names, s)
	return s
}

func (r *policyReader) labels(n *yaml.Node) map[string]string {
	labels := map[string]string{}
	r.pairs(n, func(key, value *yaml.Node) {
		want, ok := r.text(value)
		switch {
		case !ok:
		case key.Value == "":
			r.bad(key, "labels has an empty key: name the label")
		case want != anyValue && strings.Contains(want, "*"):
			r.bad(value, `label %s is %q: write a value as it is, or "*" alone for any`, errtext.Clip(key.Value), errtext.Clip(want))
		default:
			labels[key.Value] = want
		}
	})
	return labels
}

func (r *policyReader) gifts(n *yaml.Node) (g podGifts) {
	r.fields(n, map[string]func(*yaml.Node){
		"tags":     func(n *yaml.Node) { g.tags = r.tags(n) },
		"profile":  func(n *yaml.Node) { g.profile = r.profile(n) },
		"features": func(n *yaml.Node) { g.features = r.features(n) },
	})
	return g
}

// tags reads the tags of a default. None would be no limit: an OAuth client gives a
// node that asks for no tag those of TS_TAGS.
func (r *policyReader) tags(n *yaml.Node) []string {
	tags := list(r, n, r.tag)
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		r.bad(n, "tags is empty: name some, or leave it out for those that all pods have")
	}
	return tags
}

func (r *policyReader) tag(n *yaml.Node) (string, bool) {
	s, ok := r.text(n)
	if !ok {
		return "", false
	}
	if err := tailcfg.CheckTag(s); err != nil {
		r.bad(n, "%q is not a tag (%v): write it as tag:name", errtext.Clip(s), err)
		return "", false
	}
	return s, true
}

func (r *policyReader) profile(n *yaml.Node) string {
	s, ok := r.text(n)
	if !ok {
		return ""
	}
	if err := CheckLabel(s); err != nil {
		r.bad(n, "profile is %q: %v", errtext.Clip(s), err)
	}
	return s
}

// features reads what annotations are to say where a pod does not.
func (r *policyReader) features(n *yaml.Node) map[string]string {
	values := map[string]string{}
	r.pairs(n, func(key, value *yaml.Node) {
		i := slices.Index(featureNames(), key.Value)
		switch {
		case i < 0:
			r.bad(key, "unknown feature %q: write one of %s", errtext.Clip(key.Value), strings.Join(featureNames(), ", "))
		case value.Kind != yaml.ScalarNode || isNull(value):
			r.bad(value, "feature %s needs the value of its annotation", key.Value)
		default:
			values[key.Value] = value.Value
			if value.Value == "" {
				return // it takes back what all pods have
			}
			if err := features()[i].set(&engine.Features{}, value.Value); err != nil {
				r.bad(value, "feature %s is %q: %v", key.Value, errtext.Clip(value.Value), err)
			}
		}
	})
	return values
}

func (r *policyReader) allowance(n *yaml.Node) (a allowance) {
	r.fields(n, map[string]func(*yaml.Node){
		"tags":      func(n *yaml.Node) { a.tags = r.globs(n, "tags") },
		"hostnames": func(n *yaml.Node) { a.hostnames = r.globs(n, "hostnames") },
		"profiles":  func(n *yaml.Node) { a.profiles = r.globs(n, "profiles") },
		"features":  func(n *yaml.Node) { a.features = r.globs(n, "features") },
	})
	return a
}

// globs reads patterns for what the list is of.
func (r *policyReader) globs(n *yaml.Node, of string) []string {
	return list(r, n, func(n *yaml.Node) (string, bool) {
		s, ok := r.text(n)
		if !ok {
			return "", false
		}
		if err := checkGlob(s, of); err != nil {
			r.bad(n, "%s has %q: %v", of, errtext.Clip(s), err)
			return "", false
		}
		return s, true
	})
}

// checkGlob reports why nothing can ever match the pattern.
func checkGlob(s, of string) error {
	switch of {
	case "tags":
		if tailcfg.CheckTag(strings.ReplaceAll(s, "*", "x")) != nil {
			return errors.New("write tags as tag:name, in which * stands for any text")
		}
		return nil
	case "features":
		known := slices.Concat(featureNames(), notByDefault)
		if !slices.ContainsFunc(known, func(name string) bool { return matchGlob(s, name) }) {
			slices.Sort(known)
			return fmt.Errorf("there is no such feature, write some of %s", strings.Join(slices.Compact(known), ", "))
		}
		return nil
	}
	if s == "" || strings.ContainsFunc(s, func(c rune) bool { return c != '*' && (c > 'z' || !isLabelByte(byte(c))) }) {
		return errors.New("use small letters, digits and dashes, and * for any text")
	}
	return nil
}

// IsPolicyAlone reports whether only the policy is bad.
func IsPolicyAlone(bad error) bool {
	var p policyError
	return errors.As(bad, &p) && bad.Error() == p.Error()
}
