// SPDX-License-Identifier: BSD-3-Clause

package podspec

import (
	"strings"
	"testing"
	"time"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/plugintest"
)

func TestWait(t *testing.T) {
	for _, tt := range []struct {
		wait, policy string
		want         engine.Features
		errs         []string
	}{
		{"", "", engine.Features{}, nil},
		{"30s", "", engine.Features{Wait: 30 * time.Second, WaitFails: true}, nil},
		{"1m30s", "fail", engine.Features{Wait: 90 * time.Second, WaitFails: true}, nil},
		{"1s", "start", engine.Features{Wait: time.Second}, nil},
		{"", "start", engine.Features{}, []string{AnnotationWaitPolicy, `"start"`, "add " + AnnotationWait}},
		{"", "fail", engine.Features{}, []string{AnnotationWaitPolicy, `"fail"`, "add " + AnnotationWait}},
		{"30s", "ignore", engine.Features{}, []string{AnnotationWaitPolicy, `"ignore"`, `write "fail"`, `"start"`}},
		{"30s", "true", engine.Features{}, []string{AnnotationWaitPolicy, `"true"`}},
		{"30", "", engine.Features{}, []string{AnnotationWait, `"30"`, "such as 30s"}},
		{"true", "", engine.Features{}, []string{AnnotationWait, `"true"`, "such as 30s"}},
		{"500ms", "", engine.Features{}, []string{AnnotationWait, `"500ms"`, "from 1s to 90s"}},
		{"91s", "", engine.Features{}, []string{AnnotationWait, `"91s"`, "two minutes"}},
		{"-30s", "", engine.Features{}, []string{AnnotationWait, `"-30s"`}},
	} {
		pod, _, err := From(plugintest.Sandbox("a", AnnotationEnabled, "true", AnnotationWait, tt.wait, AnnotationWaitPolicy, tt.policy), testDefaults)
		got := pod.Features
		if tt.errs == nil && (err != nil || got.Wait != tt.want.Wait || got.WaitFails != tt.want.WaitFails) {
			t.Errorf("%q, %q: got %+v, %v", tt.wait, tt.policy, got, err)
		}
		for _, text := range tt.errs {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%q, %q: want an error with %q, got %v", tt.wait, tt.policy, text, err)
			}
		}
	}
}
