// SPDX-License-Identifier: BSD-3-Clause

package podspec

import (
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/plugintest"
)

func TestWorkloadAnnotation(t *testing.T) {
	ordinal := func(notes ...string) *api.PodSandbox {
		sb := plugintest.Sandbox("db-0", append([]string{AnnotationEnabled, "true"}, notes...)...)
		sb.Labels = map[string]string{labelOrdinal: "db-0"}
		return sb
	}
	kept := testDefaults
	kept.Kept = true
	for _, tt := range []struct {
		name     string
		sb       *api.PodSandbox
		defaults Defaults
		workload bool
		errs     []string // "" is none
	}{
		{"none", ordinal(), kept, false, nil},
		{"pod", ordinal(annotationIdentity, "pod"), kept, false, nil},
		{"workload", ordinal(annotationIdentity, "workload"), kept, true, nil},
		{"bad", ordinal(annotationIdentity, "true"), kept, false, []string{annotationIdentity, `"true"`, `say "workload"`}},
		{"not kept", ordinal(annotationIdentity, "workload"), testDefaults, false, []string{annotationIdentity, "workloadState", "TS_STATE_SECRETS=true"}},
		{"pod, not kept", ordinal(annotationIdentity, "pod"), testDefaults, false, nil},
		{"no ordinal", plugintest.Sandbox("db-0", AnnotationEnabled, "true", annotationIdentity, "workload"), kept, false, []string{annotationIdentity, "StatefulSet"}},
		{"another's label", func() *api.PodSandbox {
			sb := ordinal(annotationIdentity, "workload")
			sb.Labels[labelOrdinal] = "db-1"
			return sb
		}(), kept, false, []string{annotationIdentity, "StatefulSet"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pod, in, err := From(tt.sb, tt.defaults)
			if len(tt.errs) == 0 && (err != nil || !in || pod.Features.Workload != tt.workload) {
				t.Errorf("got %+v, %v, %v", pod.Features, in, err)
			}
			for _, words := range tt.errs {
				if err == nil || !strings.Contains(err.Error(), words) {
					t.Errorf("error %v does not say %q", err, words)
				}
			}
		})
	}
	err := checkTogether(engine.Features{Workload: true, Ephemeral: true})
	if err == nil || !strings.Contains(err.Error(), AnnotationPrefix+"ephemeral") {
		t.Errorf("an ephemeral workload: %v", err)
	}
}
