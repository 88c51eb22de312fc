// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"testing"

	"tailscale-nri/engine/internal/podnet"
)

// A record's device is looked at before it is served if it may be another host's. It is
// looked at once, since it is connected afterwards: this host serves it.
func TestDiskStateFirstLook(t *testing.T) {
	here := func() error { return nil }
	gone := func() error { return podnet.ErrGone }
	in, registering := record{NodeID: "n1"}, record{Registering: true}
	for _, tt := range []struct {
		name  string
		disk  diskState
		r     record
		netns func() error
		want  bool
	}{
		{"this host's", diskState{}, in, here, false},
		{"may be a copy", diskState{foreign: true}, in, here, true},
		{"may be in the tailnet without an ID", diskState{foreign: true}, registering, here, true},
		{"never in the tailnet", diskState{foreign: true}, record{}, here, false},
		{"its pod is not here", diskState{foreign: true}, in, gone, false},
	} {
		if got := tt.disk.firstLook(&tt.r, tt.netns); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
		if tt.disk.firstLook(&tt.r, tt.netns) {
			t.Errorf("%s: and again", tt.name)
		}
	}
	d := diskState{foreign: true}
	if d.firstLook(&in, gone) || !d.firstLook(&in, here) {
		t.Error("a pod that was not here is not looked for when it is")
	}
}
