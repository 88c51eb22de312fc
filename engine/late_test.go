// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tailscale.com/tstime"

	"tailscale-nri/engine/internal/podstate"
)

// A pod that runs already and cannot be attached is attached once it can be.
// Until then the status says why it is not.
func TestLateAttachIsRepeated(t *testing.T) {
	if !inMounts(t) {
		return
	}
	w, d := newWorld(t), newDisk(t)
	w.dir = d.dir
	d.fill()
	w.boot()
	p, pod := w.pod("a")
	_, gone := w.pod("gone")
	gone.NetNS = filepath.Join(t.TempDir(), "none")
	if err := w.Sync(context.Background(), []Pod{pod, gone}, nil); err != nil {
		t.Fatal(err)
	}
	w.until("the refusal is in the status", func() bool {
		s := w.statusOf(pod.UID)
		return s.State == Pending && strings.Contains(s.Reason, "free space")
	}, func() string { return "no such status" })
	d.free()
	w.await(pod.UID, Running)
	if got := w.Status(); len(got) != 1 {
		t.Errorf("status: %v", got)
	}
	p.End()
}

// A pod that the runtime lists as live is not forgotten because it could not be
// attached.
func TestLiveButNotAttached(t *testing.T) {
	if !inMounts(t) {
		return
	}
	const grace = 500 * time.Millisecond
	w, d := newWorld(t), newDisk(t)
	w.dir = d.dir
	w.boot()
	_, pod := w.pod("a")
	w.mustAttach(pod)
	before := w.await(pod.UID, Running)
	w.halt()
	if err := os.WriteFile(filepath.Join(w.dir, pod.UID, podstate.RecordFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.fill()
	w.boot(graceOf(grace))
	if err := w.Sync(context.Background(), []Pod{pod}, nil); err != nil {
		t.Fatal(err)
	}
	tstime.Sleep(t.Context(), 4*grace)
	if d := w.control.Devices(); len(d) != 1 {
		t.Fatalf("devices: %v", d)
	}
	d.free()
	if after := w.await(pod.UID, Running); after.NodeID != before.NodeID {
		t.Errorf("the node is %s, was %s", after.NodeID, before.NodeID)
	}
}

// A list is outdated by the sandbox that came after it.
func TestLateAttachIsOutdated(t *testing.T) {
	w := newWorld(t)
	w.boot()
	_, old := w.pod("a")
	w.nextRound()
	next := old
	next.SandboxID = "sba2"
	w.mustAttach(next)
	if !w.attachLate(old, 1) {
		t.Error("it is to be tried again")
	}
	if s := w.await(next.UID, Running); s.SandboxID != next.SandboxID {
		t.Errorf("attached to %s", s.SandboxID)
	}
}
