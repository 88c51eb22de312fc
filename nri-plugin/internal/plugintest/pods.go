// SPDX-License-Identifier: BSD-3-Clause

package plugintest

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tailscale-nri/engine"
)

// FakeResolver makes a resolv.conf for each pod named in it.
type FakeResolver map[string]string

// ResolvConf is the pod's path.
func (f FakeResolver) ResolvConf(uid string) (string, error) {
	if f[uid] == "error" {
		return "", errors.New("no space left on device")
	}
	return f[uid], nil
}

// SetResolvConf writes the pod's file.
func (f FakeResolver) SetResolvConf(uid string, original []byte) error {
	if f[uid] == "" {
		return errors.New("no such pod")
	}
	return os.WriteFile(f[uid], append([]byte("search ts.net\n"), original...), 0o644)
}

// FakePods stands in for the engine: it records calls and answers as told.
type FakePods struct {
	Attached chan engine.Pod
	Ended    chan string // "detach ID" or "forget ID"
	Synced   chan []engine.Pod
	// SyncedEnded are the ended sandboxes of the last Sync.
	SyncedEnded atomic.Pointer[[]string]
	Suspected   chan string  // sandboxes
	Serving     sync.Map     // sandboxes that are attached
	Known       sync.Map     // as Serving, of those that have a node on disk and no link yet
	Unfinished  atomic.Bool  // AttachEmpty leaves something for Attach to do
	begun       sync.Map     // sandboxes for which it has
	features    sync.Map     // of each sandbox that was attached
	AnswerSync  func() error // answers Sync; nil is success
	attach      atomic.Pointer[func(context.Context) error]
}

// Answer has Attach call a, nil for success. An Attach that was given up may still be under way.
func (f *FakePods) Answer(a func(context.Context) error) {
	if a == nil {
		f.attach.Store(nil)
		return
	}
	f.attach.Store(&a)
}

// NewFakePods are none.
func NewFakePods() *FakePods {
	return &FakePods{
		Attached:  make(chan engine.Pod, 100),
		Ended:     make(chan string, 100),
		Synced:    make(chan []engine.Pod, 100),
		Suspected: make(chan string, 100),
	}
}

// Attach records the pod.
func (f *FakePods) Attach(ctx context.Context, pod engine.Pod) (created bool, err error) {
	if err := f.record(ctx, pod); err != nil {
		return false, err
	}
	_, had := f.Serving.Swap(pod.UID+" "+pod.SandboxID, true)
	_, begun := f.begun.Load(pod.SandboxID)
	return !had && !begun, nil
}

// AttachEmpty records the pod as Attach does.
func (f *FakePods) AttachEmpty(ctx context.Context, pod engine.Pod) error {
	err := f.record(ctx, pod)
	switch {
	case err != nil:
	case f.Unfinished.Load():
		f.begun.Store(pod.SandboxID, true)
	default:
		f.Serving.Store(pod.UID+" "+pod.SandboxID, true)
	}
	return err
}

func (f *FakePods) record(ctx context.Context, pod engine.Pod) error {
	f.features.Store(pod.SandboxID, pod.Features)
	f.Attached <- pod
	if answer := f.attach.Load(); answer != nil {
		return (*answer)(ctx)
	}
	return nil
}

// Serves reports whether the pod was attached.
func (f *FakePods) Serves(podUID, sandboxID string) bool {
	_, ok := f.Serving.Load(podUID + " " + sandboxID)
	return ok
}

// Knows reports whether the pod was attached, or is one of Known.
func (f *FakePods) Knows(podUID, sandboxID string) bool {
	_, ok := f.Known.Load(podUID + " " + sandboxID)
	return ok || f.Serves(podUID, sandboxID)
}

// FeaturesOf returns the features that Attach was given.
func (f *FakePods) FeaturesOf(podUID, sandboxID string) (engine.Features, bool) {
	asked, ok := f.features.Load(sandboxID)
	if !ok {
		return engine.Features{}, false
	}
	return asked.(engine.Features), true
}

// Detach records the sandbox.
func (f *FakePods) Detach(_ context.Context, id string) error {
	f.Ended <- "detach " + id
	return nil
}

// Forget records the sandbox.
func (f *FakePods) Forget(_ context.Context, id string) error {
	f.Ended <- "forget " + id
	return nil
}

// Sync records the list, and answers as AnswerSync does.
func (f *FakePods) Sync(_ context.Context, live []engine.Pod, ended []string) error {
	f.Synced <- live
	f.SyncedEnded.Store(&ended)
	if f.AnswerSync != nil {
		return f.AnswerSync()
	}
	return nil
}

// Await waits until the pod is attached.
func (f *FakePods) Await(ctx context.Context, podUID string) error {
	for {
		up := false
		f.Serving.Range(func(key, _ any) bool {
			up = up || strings.HasPrefix(key.(string), podUID+" ")
			return !up
		})
		if up {
			return nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return errors.New("the device waits for approval in the admin console")
		}
	}
}

// SocketDir returns a path without a directory.
func (f *FakePods) SocketDir(podUID string) (string, error) {
	return "/state/" + podUID + "/socket", nil
}

// Suspect records the sandbox.
func (f *FakePods) Suspect(id string) { f.Suspected <- id }
