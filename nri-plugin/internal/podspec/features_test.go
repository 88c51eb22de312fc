// SPDX-License-Identifier: BSD-3-Clause

package podspec

import (
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/plugintest"
)

// TestFeaturesOfContainers: what a pod asks for its containers is read once, here
// and by the engine alike.
func TestFeaturesOfContainers(t *testing.T) {
	pod, in, err := From(plugintest.Sandbox("a", AnnotationEnabled, "true", AnnotationSocket, "true", AnnotationWait, "5s"), testDefaults)
	if want := (engine.Features{Socket: true, Wait: 5 * time.Second, WaitFails: true}); err != nil || !in || pod.Features.Socket != want.Socket || pod.Features.Wait != want.Wait {
		t.Errorf("got %+v, %v, %v", pod.Features, in, err)
	}
	for _, key := range []string{"sockets", "wiat", "wait-polcy"} {
		if _, _, err := From(plugintest.Sandbox("a", AnnotationEnabled, "true", AnnotationPrefix+key, "1s"), testDefaults); !plugintest.ErrContains(err, "unknown key, write "+AnnotationPrefix) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// TestFeaturesFor: what the status says of a pod's features is what its annotations
// could say. No field of engine.Features is missing.
func TestFeaturesFor(t *testing.T) {
	all := engine.Features{
		DNS: true, AcceptRoutes: true, ExitNode: "gate", AdvertiseRoutes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.0/24")},
		AdvertiseExitNode: true, Socket: true, Wait: 30 * time.Second, WaitFails: true, Ephemeral: true, Workload: true, ShieldsUp: true,
	}
	for v := range slices.Values(reflect.VisibleFields(reflect.TypeFor[engine.Features]())) {
		if reflect.ValueOf(all).FieldByIndex(v.Index).IsZero() != (v.Name == "Profile") { // which has a column of its own
			t.Errorf("%s is not tried", v.Name)
		}
	}
	starts := all
	starts.WaitFails = false
	for _, want := range []engine.Features{all, starts, {}, {DNS: true}} {
		values := Values(want)
		var got engine.Features
		for _, f := range features() {
			key := strings.TrimPrefix(f.key, AnnotationPrefix)
			if v, ok := values[key]; ok {
				if err := f.set(&got, v); err != nil {
					t.Errorf("%s is %q: %v", key, v, err)
				}
				delete(values, key)
			}
		}
		if !reflect.DeepEqual(got, want) || len(values) != 0 {
			t.Errorf("got %+v and %v, want %+v", got, values, want)
		}
	}
}

// TestBadValues: each annotation that is read refuses a bad value, and the error has the
// key, the value, and what to write instead.
func TestBadValues(t *testing.T) {
	bad := map[string]struct{ value, remedy string }{
		AnnotationEnabled:           {"yes", `say "true"`},
		AnnotationHostname:          {"my_host", "use small letters, digits and dashes"},
		AnnotationTags:              {"web", "write tags as tag:name"},
		AnnotationProfile:           {"prod", "write one of those, or make it by the files prod."},
		AnnotationDNS:               {"1", `say "true"`},
		annotationIdentity:          {"statefulset", `say "workload"`},
		annotationShieldsUp:         {"on", `say "true"`},
		AnnotationSocket:            {"/var/run/tailscale", `say "true"`},
		AnnotationWait:              {"30", "write a duration such as 30s"},
		AnnotationWaitPolicy:        {"never", `write "fail"`},
		AnnotationEphemeral:         {"TRUE", `say "true"`},
		annotationAcceptRoutes:      {"10.0.0.0/8", `say "true"`},
		annotationExitNode:          {"auto:any", "write the name of a device"},
		annotationAdvertiseRoutes:   {"10.43.0.1", "write such as 10.43.0.0/16"},
		annotationAdvertiseExitNode: {"gate", `say "true"`},
	}
	for _, key := range Keys() {
		b, ok := bad[key]
		if !ok {
			t.Errorf("no bad value of %s is tried", key)
			continue
		}
		notes := []string{AnnotationEnabled, "true"}
		if key == AnnotationWaitPolicy { // which says nothing without a wait
			notes = append(notes, AnnotationWait, "30s")
		}
		_, in, err := From(plugintest.Sandbox("web", append(notes, key, b.value)...), testDefaults)
		if in || err == nil {
			t.Errorf("%s: %q is taken", key, b.value)
			continue
		}
		for _, text := range []string{"annotation " + key + " is " + strconv.Quote(b.value) + ": ", b.remedy} {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%q does not say %q", err, text)
			}
		}
	}
}
