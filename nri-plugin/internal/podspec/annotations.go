// SPDX-License-Identifier: BSD-3-Clause

package podspec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"tailscale.com/tailcfg"

	"tailscale-nri/nri-plugin/internal/errtext"
)

// What a pod may ask for. Tailscale's Kubernetes operator has annotations of its
// own under the same prefix; they are ignored and never an error.
const (
	AnnotationPrefix = "tailscale.com/"

	AnnotationEnabled  = AnnotationPrefix + "enabled"
	AnnotationHostname = AnnotationPrefix + "hostname"
	AnnotationTags     = AnnotationPrefix + "tags"
	AnnotationProfile  = AnnotationPrefix + "profile"
)

// Keys are all the annotations that are read.
func Keys() []string {
	keys := []string{AnnotationEnabled, AnnotationHostname, AnnotationTags, AnnotationProfile}
	for _, f := range features() {
		keys = append(keys, f.key)
	}
	return keys
}

// optedIn reports whether a pod with these annotations is to have a tailnet node: it asks
// for one, or a rule of the policy gives it one and it does not opt out.
//
// A pod that is not to have one is left alone, whatever its other annotations are. The
// one exception is a misspelt key of the annotation that opts in: the pod would run
// without a node and without any message, so that is an error.
func optedIn(annotations map[string]string, byRule bool) (bool, error) {
	switch v := annotations[AnnotationEnabled]; {
	case v == "true", v == "" && byRule:
		return true, checkKeys(annotations, Keys())
	case v == "false":
		return false, nil
	case v == "":
		return false, checkKeys(annotations, []string{AnnotationEnabled})
	default:
		return false, badAnnotation(AnnotationEnabled, v, `say "true" to opt in, "false" or nothing to stay out`)
	}
}

// checkKeys reports the first key, in alphabetical order, that looks like a
// misspelling of a known one. A key with no value, or "false", asks for
// nothing, and ignoring it does no harm.
func checkKeys(annotations map[string]string, ours []string) error {
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		value := annotations[key]
		if value == "" || value == "false" || slices.Contains(Keys(), key) {
			continue
		}
		if like, ok := misspelt(key, ours); ok {
			return badAnnotation(key, value, fmt.Sprintf("unknown key, write %s", like))
		}
	}
	return nil
}

// ParseTags reads a comma-separated list of tags; repeated ones count once.
func ParseTags(s string) ([]string, error) {
	var tags []string
	for tag := range strings.SplitSeq(s, ",") {
		tag = strings.TrimSpace(tag)
		if err := tailcfg.CheckTag(tag); err != nil {
			return nil, fmt.Errorf("%q is not a tag (%w): write tags as tag:name, separated by commas", errtext.Clip(tag), err)
		}
		if !slices.Contains(tags, tag) {
			tags = append(tags, tag)
		}
	}
	return tags, nil
}

// badAnnotation is the text that kubectl describe shows for a refused pod.
func badAnnotation(key, value, remedy string) error {
	return fmt.Errorf("annotation %s is %q: %s", key, errtext.Clip(value), remedy)
}
