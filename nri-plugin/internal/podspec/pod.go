// SPDX-License-Identifier: BSD-3-Clause

package podspec

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/settings"
)

// Defaults is what a pod gets by default, and what it may ask for.
type Defaults struct {
	Cluster  string   // first part of the hostname, a DNS label
	Tags     []string // may be empty where an auth key brings the tags
	Static   bool     // that key is all there is, and decides what else a node is
	Profiles map[string]Defaults
	Policy   *Policy
	// Served is set for a pod that has its node, which it keeps whatever it asks
	// for, and whatever the policy has become.
	Served bool
	Kept   bool // a device can go with its workload
}

// of are the defaults of a profile, "" is the one without a name.
func (d Defaults) of(profile string) Defaults {
	if profile == "" {
		return d
	}
	return d.Profiles[profile]
}

// ByRule reports whether no annotation has the pod opt in, so that a rule may.
func ByRule(sb *api.PodSandbox) bool { return sb.GetAnnotations()[AnnotationEnabled] == "" }

// From translates a runtime's pod sandbox into the engine's terms. It
// returns false for a pod that is not to have a node. An error names the
// annotation, its value and what to write instead: the runtime shows it to the user.
func From(sb *api.PodSandbox, d Defaults) (engine.Pod, bool, error) {
	g := d.Policy.grantOf(sb.GetNamespace(), sb.GetLabels())
	g.all = d.Served
	netns, noNetns := NetNSOf(sb)
	// A rule is for many pods: those that cannot have a node are not meant.
	rule := d.Served || g.optIn && noNetns == nil
	in, err := optedIn(sb.GetAnnotations(), rule)
	if err != nil || !in {
		return engine.Pod{}, false, err
	}
	pod := engine.Pod{
		SandboxID: sb.GetId(),
		UID:       sb.GetUid(),
		Namespace: sb.GetNamespace(),
		Name:      sb.GetName(),
		NetNS:     netns,
		PID:       sb.GetPid(),
	}
	if noNetns != nil {
		return engine.Pod{}, false, noNetns
	}
	profile, err := profileOf(sb, d, &g)
	if err != nil {
		return engine.Pod{}, false, err
	}
	if pod.Hostname, err = hostnameOf(sb, d, &g); err != nil {
		return engine.Pod{}, false, err
	}
	pod.ChosenName = sb.GetAnnotations()[AnnotationHostname] != ""
	if pod.Tags, err = tagsOf(sb, d, profile, &g); err != nil {
		return engine.Pod{}, false, err
	}
	if pod.Features, err = featuresOf(sb, &g); err != nil {
		return engine.Pod{}, false, err
	}
	pod.Features.Profile = profile
	if !d.Served {
		if err := cmp.Or(checkTogether(pod.Features), checkWorkload(sb, pod.Features, d.Kept)); err != nil {
			return engine.Pod{}, false, err
		}
	}
	if pod.Features.Ephemeral && d.of(profile).Static && !d.Served {
		return engine.Pod{}, false, badAnnotation(AnnotationEphemeral, "true", keyDecides)
	}
	return pod, true, nil
}

// keyDecides is why a pod cannot ask for an ephemeral node if TS_AUTHKEY is set.
const keyDecides = "with " + settings.AuthKey + " the key decides that: make it an ephemeral one, or take the annotation, or the policy's default, out"

// profileOf is the name of the pod's tailnet, "" for the one without a name.
func profileOf(sb *api.PodSandbox, d Defaults, g *grant) (string, error) {
	given := sb.GetAnnotations()[AnnotationProfile]
	name := cmp.Or(given, g.gifts.profile)
	if given != "" {
		if err := CheckLabel(given); err != nil {
			return "", badAnnotation(AnnotationProfile, given, err.Error())
		}
		if given != g.gifts.profile {
			if err := g.checkProfile(given); err != nil {
				return "", err
			}
		}
	}
	if _, ok := d.Profiles[name]; name != "" && !ok && !d.Served {
		return "", badAnnotation(AnnotationProfile, name, noProfile(name, d.Profiles))
	}
	return name, nil
}

// noProfile says what to do about a profile that does not exist.
func noProfile(name string, known map[string]Defaults) string {
	have := "there is none"
	if len(known) > 0 {
		have = "there is " + strings.Join(slices.Sorted(maps.Keys(known)), ", ")
	}
	return fmt.Sprintf("%s: write one of those, or make it by the files %s.%s, … in %s", have, name, settings.OAuthID, settings.ConfigDir)
}

// NetNSOf returns the path of the sandbox's network namespace. A sandbox that
// shares the host's has no such entry.
func NetNSOf(sb *api.PodSandbox) (string, error) {
	for _, ns := range sb.GetLinux().GetNamespaces() {
		if ns.GetType() == "network" {
			return ns.GetPath(), nil
		}
	}
	return "", errors.New("a pod with hostNetwork: true has no network of its own to put a tailnet node in: " +
		"remove the annotation " + AnnotationEnabled + " or hostNetwork")
}

func hostnameOf(sb *api.PodSandbox, d Defaults, g *grant) (string, error) {
	given := sb.GetAnnotations()[AnnotationHostname]
	if given == "" {
		return g.hostname.name(d.Cluster, sb.GetNamespace(), sb.GetName()), nil
	}
	label, err := givenHostname(given)
	if err != nil {
		return "", badAnnotation(AnnotationHostname, given, err.Error())
	}
	return label, g.checkHostname(given, label)
}

// tagsOf returns the pod's tags. Those that need no permission from the policy are the
// profile's.
func tagsOf(sb *api.PodSandbox, d Defaults, profile string, g *grant) ([]string, error) {
	standard := d.of(profile).Tags
	if g.gifts.tags != nil && g.gifts.profile == profile {
		standard = g.gifts.tags
	}
	given := sb.GetAnnotations()[AnnotationTags]
	if given == "" {
		return slices.Clone(standard), nil
	}
	tags, err := ParseTags(given)
	if err != nil {
		return nil, badAnnotation(AnnotationTags, given, err.Error())
	}
	return tags, g.checkTags(given, tags, standard)
}

// Gone reports whether a sandbox in the runtime's list has ended. The runtime
// lists such sandboxes until they are removed, with neither a process nor a
// network namespace; one that shares the host's network still has a process.
func Gone(sb *api.PodSandbox) bool {
	path, err := NetNSOf(sb)
	return sb.GetPid() == 0 && (err != nil || path == "")
}
