// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale-nri/engine/internal/podstate"
)

// A pod that came back after a reboot, and was let in by the control plane, is
// this host's: with a static key it is logged out when it goes, though nobody
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
	if _, err := os.Stat(filepath.Join(w.dir, pod.UID+podstate.CopiedExt)); !errors.Is(err, fs.ErrNotExist) {
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
	w.reasonSays(pod.UID, "tag:k8s-pod", "tag:other", "StaticConfig.AuthKey")
	addrs, err := addresses(p) // of a link that may just be made again
	if slices.ContainsFunc(addrs, func(a string) bool { return !strings.HasPrefix(a, "fe80:") }) {
		t.Errorf("ts0 has %v (%v)", addrs, err)
	}
}

// The file says when the last process ended, and a host that was off for so long
// that its device has been noticed to be gone is none that came back.
func TestServedUntilTheEnd(t *testing.T) {
	w := newWorld(t)
	w.boot()
	w.join("a")
	end, hostBoot := time.Now(), w.hostBoot
	w.halt()
	if s := podstate.LoadServed(w.dir, hostBoot); s.At.Before(end) {
		t.Errorf("last used at %v, want %v or later", s.At, end)
	}
	for away, want := range map[time.Duration]bool{20 * time.Minute: true, time.Hour: false} {
		e := &Engine{served: podstate.Served{Away: away}}
		if e.cameBack() != want {
			t.Errorf("away for %v: came back is %v, want %v", away, !want, want)
		}
	}
}

// TestServed: how long nobody has used a state directory, by its file.
func TestServed(t *testing.T) {
	hour := func(ago int) time.Time { return time.Now().Add(time.Duration(-ago) * time.Hour) }
	for _, tt := range []struct {
		name string
		file any // nil is none
		want time.Duration
	}{
		{"no file", nil, 0},
		{"no JSON", "}", 0},
		{"another boot, an hour ago", podstate.Served{HostBoot: "another", At: hour(1)}, time.Hour},
		{"another boot, in the future", podstate.Served{HostBoot: "another", At: hour(-1)}, 0},
		{"this boot, which began after two hours", podstate.Served{HostBoot: "this", At: hour(1), Away: 2 * time.Hour}, 2 * time.Hour},
		{"another boot, which itself was away", podstate.Served{HostBoot: "another", At: hour(0), Away: 2 * time.Hour}, 0},
	} {
		dir := t.TempDir()
		if tt.file != nil {
			data, err := json.Marshal(tt.file)
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, podstate.ServedFile), data, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		s := podstate.LoadServed(dir, "this")
		if s.HostBoot != "this" || s.Away.Round(time.Minute) != tt.want {
			t.Errorf("%s: away for %v, want %v", tt.name, s.Away, tt.want)
		}
	}
}
