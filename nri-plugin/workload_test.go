// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
)

func TestWorkloadAnnotation(t *testing.T) {
	ordinal := func(notes ...string) *api.PodSandbox {
		sb := plugintest.Sandbox("db-0", append([]string{annotationEnabled, "true"}, notes...)...)
		sb.Labels = map[string]string{labelOrdinal: "db-0"}
		return sb
	}
	kept := testDefaults
	kept.kept = true
	for _, tt := range []struct {
		name     string
		sb       *api.PodSandbox
		defaults podDefaults
		workload bool
		errs     []string // "" is none
	}{
		{"none", ordinal(), kept, false, nil},
		{"pod", ordinal(annotationIdentity, "pod"), kept, false, nil},
		{"workload", ordinal(annotationIdentity, "workload"), kept, true, nil},
		{"bad", ordinal(annotationIdentity, "true"), kept, false, []string{annotationIdentity, `"true"`, `say "workload"`}},
		{"not kept", ordinal(annotationIdentity, "workload"), testDefaults, false, []string{annotationIdentity, "workloadState", "TS_STATE_SECRETS=true"}},
		{"pod, not kept", ordinal(annotationIdentity, "pod"), testDefaults, false, nil},
		{"no ordinal", plugintest.Sandbox("db-0", annotationEnabled, "true", annotationIdentity, "workload"), kept, false, []string{annotationIdentity, "StatefulSet"}},
		{"another's label", func() *api.PodSandbox {
			sb := ordinal(annotationIdentity, "workload")
			sb.Labels[labelOrdinal] = "db-1"
			return sb
		}(), kept, false, []string{annotationIdentity, "StatefulSet"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pod, in, err := podFrom(tt.sb, tt.defaults)
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
	if err == nil || !strings.Contains(err.Error(), annotationPrefix+"ephemeral") {
		t.Errorf("an ephemeral workload: %v", err)
	}
}

// Where nothing is mounted, pods that need no store are served all the same.
func TestNoIdentityStore(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	if s := identityStore(Config{}, log); s != nil {
		t.Errorf("a store that nobody asked for: %v", s)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "192.0.2.1")
	if _, err := identityStore(Config{StateSecrets: true}, log).List(t.Context()); err == nil || !strings.Contains(err.Error(), settings.NodeName) {
		t.Errorf("without the node's name: %v", err)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	s := identityStore(Config{StateSecrets: true, NodeName: "n1"}, log)
	if s == nil {
		t.Fatal("no store")
	}
	_, err := s.Load(t.Context(), engine.WorkloadKey{})
	if err == nil || errors.Is(err, engine.ErrNoIdentity) {
		t.Errorf("Load = %v: a pod would make an identity anew", err)
	}
	if _, err := s.List(t.Context()); err == nil {
		t.Error("List succeeds: the sweep would delete what is kept")
	}
}
