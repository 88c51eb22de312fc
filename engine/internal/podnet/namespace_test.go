// SPDX-License-Identifier: BSD-3-Clause

package podnet

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"tailscale.com/wgengine/router"

	"tailscale-nri/engine/internal/nstest"
)

// A path and an inode number that were one pod's are another's later on: the
// kernel gives the lowest number that is free. The other pod is never touched
// for the first.
func TestReusedNumbers(t *testing.T) {
	pod, path := nstest.NewPod(t), filepath.Join(t.TempDir(), "ns")
	point(t, path, pod)
	ns, err := FindNamespace(path)
	if err != nil {
		t.Fatal(err)
	}
	link, err := Ensure(ns, "tsreused", nil)
	if err != nil {
		t.Fatal(err)
	}
	pod.End()
	other := nstest.NewPod(t)
	point(t, path, other)
	// Waiting for the number to come again takes from a moment to minutes.
	now, err := FindNamespace(path)
	if err != nil {
		t.Fatal(err)
	}
	link.NS.Dev, link.NS.Ino = now.Dev, now.Ino

	if err := link.NS.Check(); !errors.Is(err, ErrGone) {
		t.Errorf("Check = %v, want ErrGone", err)
	}
	if _, err := Ensure(link.NS, "tsreused", nil); !errors.Is(err, ErrGone) {
		t.Errorf("Ensure = %v, want ErrGone", err)
	}
	r := link.Router(slog.New(slog.DiscardHandler), nil, nil)
	cfg := router.Config{LocalAddrs: []netip.Prefix{netip.MustParsePrefix("100.64.0.9/32")}}
	if err := r.Set(&cfg); !errors.Is(err, ErrGone) {
		t.Errorf("Set = %v, want ErrGone", err)
	}
	if err := r.Close(); err != nil && !errors.Is(err, ErrGone) {
		t.Errorf("Close = %v", err)
	}
	links, err := other.Netlink().LinkList()
	if err != nil || len(links) != 1 {
		t.Errorf("the other pod has %d links (%v), want lo alone", len(links), err)
	}
	// Under a name of its own it is reached, of course.
	mustEnsure(t, other, "tsother")
	if err := Remove("tsother"); err != nil {
		t.Error(err)
	}
}

// point makes path a symbolic link to the pod's netns.
func point(t *testing.T, path string, pod *nstest.Pod) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(path), os.Symlink(pod.Path(), path)); err != nil {
		t.Fatal(err)
	}
}

// What is on disk from before a reboot leads nowhere, whatever has the numbers
// now.
func TestAnotherBoot(t *testing.T) {
	pod := nstest.NewPod(t)
	ns, err := FindNamespace(pod.Path())
	if err != nil {
		t.Fatal(err)
	}
	if ns.Boot == "" || ns.Cookie == 0 {
		t.Errorf("%+v: want a boot ID and a cookie", ns)
	}
	data, err := json.Marshal(ns)
	if err != nil {
		t.Fatal(err)
	}
	var read Namespace
	if err := json.Unmarshal(data, &read); err != nil {
		t.Fatal(err)
	}
	if err := read.Check(); err != nil {
		t.Errorf("as written to disk: %v", err)
	}
	later := ns
	later.Boot = "5f3c0a5e-0000-4000-8000-000000000000"
	if err := later.Check(); !errors.Is(err, ErrGone) {
		t.Errorf("after a reboot: %v, want ErrGone", err)
	}
	// Written before there were boot IDs and cookies.
	old := Namespace{Paths: ns.Paths, Dev: ns.Dev, Ino: ns.Ino}
	if err := old.Check(); err != nil {
		t.Errorf("without boot ID and cookie: %v", err)
	}
}

func BenchmarkCheck(b *testing.B) {
	ns, err := FindNamespace(nstest.NewPod(b).Path())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := ns.Check(); err != nil {
			b.Fatal(err)
		}
	}
}
