// SPDX-License-Identifier: BSD-3-Clause

package podspec

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/errtext"
	"tailscale-nri/nri-plugin/internal/settings"
)

// Policy says which pods get a node and what they may ask for. The first of its
// rules that matches a pod decides, alone; a pod that none matches has the default
// policy. The nil policy is that for all pods.
type Policy struct {
	file     string // absolute
	Text     string // what the file holds
	hostname nameTemplate
	defaults podGifts // of all pods, where a rule's say nothing
	Ranges   []netip.Prefix
	rules    []policyRule
}

// RuleNames are the names of its rules in their order, "" of one without.
func (p *Policy) RuleNames() (names []string) {
	for _, r := range p.rules {
		names = append(names, r.name)
	}
	return names
}

// policyRule is a rule of the policy.
type policyRule struct {
	name       string            // "" where it has none
	namespaces []string          // globs; none is any
	labels     map[string]string // that a pod must have all of; "*" is any value
	optIn      bool
	defaults   podGifts
	allow      allowance
}

// podGifts are what a pod has by default.
type podGifts struct {
	tags     []string          // nil says nothing
	profile  string            // "" says nothing
	features map[string]string // values by annotation, without the prefix
}

// allowance is what a pod may ask for, as globs. A list that is nil is as in the
// default policy, an empty one allows nothing.
type allowance struct {
	tags, hostnames, profiles, features []string
}

// The names of annotations that the default policy forbids: with them a pod takes on
// traffic of others, or the device of another.
var notByDefault = []string{"advertise-routes", "advertise-exit-node", "identity"}

const (
	anyValue   = "*"
	kubeSystem = "kube-system"
)

// Policies hold the policy in effect. Nil ones hold none.
type Policies struct{ now atomic.Pointer[Policy] }

// Set puts p into effect.
func (h *Policies) Set(p *Policy) { h.now.Store(p) }

// Load returns the policy in effect, nil for none.
func (h *Policies) Load() *Policy {
	if h == nil {
		return nil
	}
	return h.now.Load()
}

// grant is the part of a policy that applies to one pod.
type grant struct {
	by       string // who has decided, for an error
	remedy   string // how a pod comes to more, "%s" is the list to add it to
	optIn    bool   // without an annotation
	all      bool   // whatever it asks for: it has its node already
	hostname nameTemplate
	gifts    podGifts
	allow    allowance
}

// grantOf returns the part of the policy that applies to a pod.
func (p *Policy) grantOf(namespace string, labels map[string]string) grant {
	g := grant{
		by:     "the default policy",
		remedy: "have a rule allow it (%s in the file that " + settings.PolicyFile + " names)",
	}
	if p == nil {
		return g
	}
	g.hostname, g.gifts = p.hostname, p.defaults
	for i, r := range p.rules {
		if !r.matches(namespace, labels) {
			continue
		}
		g.by = fmt.Sprintf("rule %d%s of %s", i+1, quotedName(r.name), p.file)
		g.remedy = "add it to %s of that rule"
		g.gifts, g.allow = r.defaults.over(p.defaults), r.allow
		g.optIn = r.optIn && (namespace != kubeSystem || slices.Contains(r.namespaces, kubeSystem))
		return g
	}
	g.by += fmt.Sprintf(", since no rule of %s matches the pod,", p.file)
	return g
}

func quotedName(name string) string {
	if name == "" {
		return ""
	}
	return fmt.Sprintf(" (%s)", name)
}

func (r *policyRule) matches(namespace string, labels map[string]string) bool {
	if len(r.namespaces) > 0 && !matchAny(r.namespaces, namespace) {
		return false
	}
	for key, want := range r.labels {
		if is, ok := labels[key]; !ok || want != anyValue && is != want {
			return false
		}
	}
	return true
}

// over are a rule's gifts, and where they say nothing those of all pods. Tags are
// a tailnet's: those of another profile say nothing.
func (g podGifts) over(all podGifts) podGifts {
	out := podGifts{tags: g.tags, profile: cmp.Or(g.profile, all.profile), features: map[string]string{}}
	if out.tags == nil && out.profile == all.profile {
		out.tags = all.tags
	}
	for _, from := range []podGifts{all, g} {
		for name, value := range from.features {
			out.features[name] = value
		}
	}
	return out
}

// refuse is the error of an annotation that the policy forbids. allowed says what
// it allows instead, list where that is written.
func (g *grant) refuse(key, value, what, allowed, list string) error {
	return badAnnotation(key, value, fmt.Sprintf("%s does not allow %s%s: take it out, or %s",
		g.by, what, allowed, fmt.Sprintf(g.remedy, "allow."+list)))
}

// checkTags returns an error for a tag that the pod neither has by default nor is allowed
// to have.
func (g *grant) checkTags(given string, tags, standard []string) error {
	for _, tag := range tags {
		if g.all || slices.Contains(standard, tag) || matchAny(g.allow.tags, tag) {
			continue
		}
		allowed := ", and no other tag either"
		if may := slices.Concat(standard, g.allow.tags); len(may) > 0 {
			allowed = ", only " + errtext.Clip(strings.Join(may, ", "))
		}
		return g.refuse(AnnotationTags, given, errtext.Clip(tag), allowed, "tags")
	}
	return nil
}

// checkHostname returns an error for a chosen hostname that is not allowed.
func (g *grant) checkHostname(given, label string) error {
	if g.all || g.allow.hostnames == nil || matchAny(g.allow.hostnames, label) {
		return nil
	}
	allowed := ", and no other hostname either"
	if len(g.allow.hostnames) > 0 {
		allowed = ", only " + errtext.Clip(strings.Join(g.allow.hostnames, ", "))
	}
	return g.refuse(AnnotationHostname, given, label, allowed, "hostnames")
}

// checkProfile returns an error for a profile that the pod asks for and may not have.
func (g *grant) checkProfile(name string) error {
	if g.all || matchAny(g.allow.profiles, name) {
		return nil
	}
	return g.refuse(AnnotationProfile, name, "it", "", "profiles")
}

// checkFeature returns an error for a feature that the pod asks for and may not have.
func (g *grant) checkFeature(key, value string) error {
	name := strings.TrimPrefix(key, AnnotationPrefix)
	if g.all || g.allow.features == nil && !slices.Contains(notByDefault, name) || matchAny(g.allow.features, name) {
		return nil
	}
	return g.refuse(key, value, name, "", "features")
}

// featureNames are the annotations of features, without the prefix.
func featureNames() (names []string) {
	for _, f := range features() {
		names = append(names, strings.TrimPrefix(f.key, AnnotationPrefix))
	}
	return names
}

// checkTogether refuses features that exclude each other. Not those of a pod that is
// served: its own are in its record, and these may be defaults of a later policy.
func checkTogether(f engine.Features) error {
	if f.Ephemeral && f.Workload {
		return badAnnotation(AnnotationEphemeral, "true",
			"a device that the tailnet deletes when it is offline cannot outlive its pod, as identity: workload has it: remove one of the two annotations")
	}
	if f.Workload && f.Profile != "" {
		return badAnnotation(AnnotationProfile, f.Profile,
			"a device that outlives its pod, as identity: workload has it, is in the default tailnet alone: remove one of the two annotations")
	}
	if f.ExitNode != "" && f.AdvertiseExitNode {
		return badAnnotation(annotationExitNode, f.ExitNode,
			"a pod that is an exit node cannot use one: remove it or "+annotationAdvertiseExitNode)
	}
	if f.ShieldsUp && (f.AdvertiseExitNode || len(f.AdvertiseRoutes) > 0) {
		return badAnnotation(annotationShieldsUp, "true",
			"no peer can send anything through a subnet router or exit node that has its shields up: "+
				`write "false", also where the policy has "true" by default, or remove what the pod advertises`)
	}
	return nil
}
