// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A pod that came back after a reboot, and was let in by the control plane, is
// this machine's: with a static key it is logged out when it goes, though nobody
// can say where its device is connected.
func TestRebootWithStaticKey(t *testing.T) {
	w := newWorld(t)
	w.static(w.control.NewReusableKey())
	w.boot()
	p, pod := w.pod("a")
	pod.Tags = nil
	w.mustAttach(pod)
	before := w.await(pod.UID, Running)
	w.halt()
	p.End()
	w.boot(rebooted, func(cfg *Config) { cfg.copyPatience = time.Second })
	_, next := w.pod("a")
	next.SandboxID, next.Tags = "sba2", nil
	w.mustAttach(next)
	if after := w.await(pod.UID, Running); after.NodeID != before.NodeID {
		t.Fatalf("the pod is %s, was %s", after.NodeID, before.NodeID)
	}
	n := w.find(next.SandboxID)
	n.update(func(r *record) { r.Retried = false })
	if err := w.Forget(t.Context(), next.SandboxID); err != nil {
		t.Fatal(err)
	}
	w.awaitForgotten(pod.UID)
	if d := w.control.Devices(); len(d) != 1 || !d[0].Expired {
		t.Errorf("the node is not logged out: %+v", d)
	}
	if _, err := os.Stat(filepath.Join(w.dir, pod.UID+copiedExt)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the state is kept as a copy (%v)", err)
	}
}

// A node that logs in again after a restart and comes back with other tags has no
// address any more, though an earlier process gave its link some.
func TestOtherTagsAfterRestart(t *testing.T) {
	w := newWorld(t)
	w.static(w.control.NewReusableKey("tag:k8s-pod"))
	w.boot()
	p, pod := w.pod("web")
	w.mustAttach(pod)
	w.await(pod.UID, Running)
	// Ended between the intent to log in again and the login.
	w.find(pod.SandboxID).update(func(r *record) { r.Registering, r.TagsDue = true, true })
	w.halt()
	w.static(w.control.NewReusableKey("tag:other"))
	w.boot()
	w.reasonSays(pod.UID, "tag:k8s-pod", "tag:other", "TS_AUTHKEY")
	addrs, err := addresses(p) // of a link that may just be made again
	if slices.ContainsFunc(addrs, func(a string) bool { return !strings.HasPrefix(a, "fe80:") }) {
		t.Errorf("ts0 has %v (%v)", addrs, err)
	}
}
