// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"strings"
	"testing"

	"tailscale-nri/engine/tailnet"
)

// A static key that is spent says so, with the variable that it is in.
func TestSpentStaticKey(t *testing.T) {
	w := newWorld(t)
	door, err := tailnet.NewStatic(tailnet.StaticConfig{AuthKey: w.control.NewKey("tag:k8s-pod"), ControlURL: w.control.ControlURL()})
	if err != nil {
		t.Fatal(err)
	}
	w.tailnet = door
	w.boot()
	w.join("a")
	_, b := w.pod("b")
	w.mustAttach(b)
	var last string
	w.until("the second node says why it is not up", func() bool {
		last = w.await(b.UID, Pending).Reason
		return strings.Contains(last, "TS_AUTHKEY")
	}, func() string { return last })
}
