// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tailscale-nri/engine/internal/podstate"
)

// A restart while control plane, API, DERP and STUN are all away comes back
// from what is on disk: same addresses, and connections go on.
func TestRestartDuringOutage(t *testing.T) {
	w := newWorld(t)
	w.boot()
	a, podA := w.pod("a")
	b, podB := w.pod("b")
	w.mustAttach(podA)
	w.mustAttach(podB)
	before, nodeB := w.await(podA.UID, Running), w.await(podB.UID, Running)
	conn := dialEcho(t, a, b, nodeB.Addresses[0])
	for _, pod := range []Pod{podA, podB} {
		w.awaitKept(pod, 1)
	}

	w.halt()
	w.control.Close()
	w.boot()
	start := time.Now()
	if err := exchange(conn, "during"); err != nil {
		t.Fatalf("the connection did not survive: %v", err)
	}
	t.Logf("the connection went on %v after the start", time.Since(start))
	w.await(podB.UID, Running)
	after := w.await(podA.UID, Running)
	if after.NodeID != before.NodeID || after.Addresses[0] != before.Addresses[0] {
		t.Errorf("after the restart %s %v, before %s %v", after.NodeID, after.Addresses, before.NodeID, before.Addresses)
	}
	assertPrivate(t, w.dir)
}

// A device that is deleted while no process is there to hear of it is known to
// the node by its last netmap, which the backend does not doubt by itself.
func TestDeletedWhileAway(t *testing.T) {
	w := newWorld(t)
	w.boot()
	_, pod := w.pod("a")
	w.mustAttach(pod)
	before := w.await(pod.UID, Running)
	w.awaitKept(pod, 0)
	w.halt()
	if err := w.devices().Delete(t.Context(), before.NodeID); err != nil {
		t.Fatal(err)
	}
	w.boot()
	w.until("the node is another device", func() bool {
		s := w.statusOf(pod.UID)
		return s.State == Running && s.NodeID != before.NodeID
	}, func() string { return w.statusOf(pod.UID).Reason })
}

// awaitKept waits until the pod's netmap is on disk, with so many peers and the
// endpoints of each.
func (w *world) awaitKept(pod Pod, peers int) {
	w.t.Helper()
	var kept []string
	w.until("the netmap is on disk", func() bool {
		files, _ := filepath.Glob(filepath.Join(w.dir, pod.UID, podstate.NetmapDir, hex.EncodeToString([]byte("peer-"))+"*"))
		kept = nil
		for _, file := range files {
			if data, err := os.ReadFile(file); err == nil && strings.Contains(string(data), `"Endpoints":["`) {
				kept = append(kept, file)
			}
		}
		return len(kept) == peers
	}, func() string { return strings.Join(kept, " ") })
}
