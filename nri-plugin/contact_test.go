// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
)

// TestRelist: the runtime's list comes again when it is asked for, not more
// often than it should, and the log has no word of it.
func TestRelist(t *testing.T) {
	dir, pods, other := t.TempDir(), newFakePods(), newFakePods()
	var mu sync.Mutex
	var at []time.Time
	pods.sync = func() error {
		mu.Lock()
		defer mu.Unlock()
		at = append(at, time.Now())
		return nil
	}
	r := startRuntime(t, dir, sandbox("a", annotationEnabled, "true"))
	book := startPlugin(t, dir, other)
	r.waitSynced(t)
	reg, _ := startRegistration(t, dir, pods)
	r.waitSynced(t)
	receive(t, pods.synced, "the first Sync")
	const again = 2
	for range again {
		for range 100 {
			reg.relist()
		}
		r.waitSynced(t)
		if live := receive(t, pods.synced, "Sync"); len(live) != 1 || live[0].SandboxID != "id-a" {
			t.Errorf("live is %v", live)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for i := 2; i < len(at); i++ {
		if gap := at[i].Sub(at[i-1]); gap < settle {
			t.Errorf("Sync %d came %v after the one before, want %v at least", i, gap, settle)
		}
	}
	if n := len(other.synced); n != 1 || book.count("level=WARN") != 0 {
		t.Errorf("another plugin was synchronized %d times\n%s", n, book)
	}
}

// TestRelistMissesNothing: while connections change, no sandbox starts without
// the plugin, which the runtime would take for consent.
func TestRelistMissesNothing(t *testing.T) {
	dir, pods := t.TempDir(), newFakePods()
	r := startRuntime(t, dir)
	reg, book := startRegistration(t, dir, pods)
	r.waitSynced(t)
	receive(t, pods.synced, "the first Sync")
	// A list asked for, one in place, and the old connection closed.
	for range 2 {
		reg.relist()
		for listed := false; !listed; {
			block := r.BlockPluginSync() // as containerd does
			if err := r.run(sandbox("bad", annotationEnabled, "yes please")); err == nil {
				t.Error("a sandbox has started that is to be refused")
			}
			block.Unblock()
			select {
			case <-pods.synced:
				listed = true
			default:
			}
		}
	}
	if book.count("registered with") != 1 || book.count("level=WARN") != 0 {
		t.Errorf("want one registration in the log, and no warning:\n%s", book)
	}
}

// TestRelistLeavesHooksAlone: what a hook under way answers arrives, though
// its connection is closed by then or the list is due.
func TestRelistLeavesHooksAlone(t *testing.T) {
	dir, pods := t.TempDir(), newFakePods()
	release := make(chan struct{})
	pods.attach = func(context.Context) error {
		<-release
		return errors.New("no buffer space")
	}
	r := startRuntime(t, dir)
	reg, _ := startRegistration(t, dir, pods)
	r.waitSynced(t)
	receive(t, pods.synced, "the first Sync")
	ran := make(chan error, 1)
	go func() { ran <- r.run(sandbox("web", annotationEnabled, "true")) }()
	receive(t, pods.attached, "Attach")
	reg.relist()
	receive(t, pods.synced, "Sync") // the runtime asks for it before it takes the new connection
	close(release)
	if err := receive(t, ran, "the end of the hook"); !errContains(err, "no buffer space") {
		t.Errorf("the runtime got %v", err)
	}
}

// TestRelistWaits for a runtime that gives no list yet: until then the old
// connection serves.
func TestRelistWaits(t *testing.T) {
	dir, pods := t.TempDir(), newFakePods()
	r := startRuntime(t, dir)
	reg, _ := startRegistration(t, dir, pods)
	r.waitSynced(t)
	receive(t, pods.synced, "the first Sync")
	block := r.BlockPluginSync()
	reg.relist()
	for range 3 {
		if err := r.StopPodSandbox(t.Context(), &adaptation.StopPodSandboxRequest{Pod: sandbox("web")}); err != nil {
			t.Fatal(err)
		}
		receive(t, pods.ended, "Detach")
	}
	if len(pods.synced) != 0 {
		t.Fatal("the runtime has given its list; this test proves nothing")
	}
	block.Unblock()
	receive(t, pods.synced, "Sync")
}

// TestRelistOfADeadRuntime: a list that is asked for and never comes keeps
// nobody from the next runtime.
func TestRelistOfADeadRuntime(t *testing.T) {
	dir, pods := t.TempDir(), newFakePods()
	kill := startRuntimeProcess(t, dir)
	reg, _ := startRegistration(t, dir, pods)
	receive(t, pods.synced, "the first Sync")
	reg.relist()
	kill()
	reg.relist()
	startRuntime(t, dir).waitSynced(t)
	receive(t, pods.synced, "Sync")
}

// TestRemoveContainer: the engine looks at the sandbox, whatever it is.
func TestRemoveContainer(t *testing.T) {
	dir, pods := t.TempDir(), newFakePods()
	r := startRuntime(t, dir)
	startPlugin(t, dir, pods)
	r.waitSynced(t)
	for _, sb := range []*api.PodSandbox{sandbox("web", annotationEnabled, "true"), sandbox("plain")} {
		req := &adaptation.RemoveContainerRequest{Pod: sb, Container: &api.Container{Id: "c", PodSandboxId: sb.Id}}
		if err := r.RemoveContainer(t.Context(), req); err != nil {
			t.Error(err)
		}
		if got := receive(t, pods.suspected, "Suspect"); got != sb.Id {
			t.Errorf("got %s, want %s", got, sb.Id)
		}
	}
}
