// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestInspectState: what a served pod leaves on disk is read next to the engine that
// serves it, and what is left when its sandbox has gone.
func TestInspectState(t *testing.T) {
	w := newWorld(t)
	if _, err := InspectState(filepath.Join(w.dir, "nowhere")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that is not there: %v", err)
	}
	if dm := StoredDERPMap(t.Context(), w.dir); dm != nil {
		t.Errorf("before the first pod: %+v", dm)
	}
	w.boot()
	ns, pod := w.pod("looked-at")
	pod.Tags = []string{"tag:web"}
	w.mustAttach(pod)
	node := w.await(pod.UID, Running)
	v, err := InspectState(w.dir)
	if err != nil || len(v.Pods) != 1 || len(v.Bad)+len(v.SetAside) != 0 {
		t.Fatalf("got %+v, %v", v, err)
	}
	p := v.Pods[0]
	if p.UID != pod.UID || p.Name != "looked-at" || p.NodeID != node.NodeID || !slices.Equal(p.Tags, pod.Tags) || p.Gone || p.Forgotten {
		t.Errorf("got %+v", p)
	}
	host, err := InspectHost()
	if err != nil || !slices.ContainsFunc(host.Links, func(l HostLink) bool { return l.Name == p.Link }) {
		t.Errorf("no link %s among %+v, %v", p.Link, host.Links, err)
	}
	for name, want := range map[string]bool{"vetht0123abcdef": true, "vethtAb3xZ": false, "vethtabc12": false, "veth0123abcdef0": false, "vetht0123abcdeg": false} {
		if IsOurLink(name) != want {
			t.Errorf("IsOurLink(%q) is not %v", name, want)
		}
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if dm := StoredDERPMap(t.Context(), w.dir); dm != nil {
			if dm.Regions[900] == nil {
				t.Errorf("the DERP map has %+v", dm.Regions)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no DERP map on disk")
		}
	}
	w.halt()
	ns.End()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if v, err = InspectState(w.dir); err == nil && len(v.Pods) == 1 && v.Pods[0].Gone {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the sandbox has gone, and the record says %+v, %v", v, err)
		}
	}
}
