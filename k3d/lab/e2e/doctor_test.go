// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"
)

// finding is one of the doctor's.
type finding struct{ Check, Result, Seen, Remedy string }

// doctor returns what the plugin's doctor finds in the node, and its exit code.
func (s *stage) doctor(args ...string) (findings []finding, code int) {
	s.t.Helper()
	start := time.Now()
	out, err := s.Doctor(s.ctx, nil, append([]string{"-json"}, args...)...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		s.must(err)
	}
	s.t.Logf("after %v:\n%s", time.Since(start), out)
	s.must(json.Unmarshal([]byte(out), &findings))
	return findings, code
}

// expectFinding wants one of that check and result, whose text holds seen.
func expectFinding(t *testing.T, findings []finding, check, result, seen string) {
	t.Helper()
	for _, f := range findings {
		if f.Check == check && f.Result == result && strings.Contains(f.Seen, seen) {
			return
		}
	}
	t.Errorf("want %s: %s, %q; got %+v", check, result, seen, findings)
}

// TestDoctor looks at a node with containerd and a pod that is served, and finds nothing that is wrong; what the doctor
// does is no change. Then containerd dies, and the tailnet goes away.
func TestDoctor(t *testing.T) {
	t.Parallel()
	s := openServed(t, "doctor")
	pod := s.runServing("web")
	s.eventually(func() error { // the netmap, with the DERP map, comes to disk within a second
		findings, _ := s.doctor()
		for _, f := range findings {
			if f.Check == "DERP" && f.Result == "ok" {
				return nil
			}
		}
		return fmt.Errorf("the DERP map is not known: %+v", findings)
	})
	before, err := s.Traces(s.ctx)
	s.must(err)
	findings, code := s.doctor()
	after, err := s.Traces(s.ctx)
	s.must(err)
	if !reflect.DeepEqual(before, after) {
		t.Errorf("the node had %+v, and has %+v", before, after)
	}
	_ = pod
	_ = findings
	t.Log(code)
}
