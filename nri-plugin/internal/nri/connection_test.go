// SPDX-License-Identifier: BSD-3-Clause

package nri

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"

	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/podspec"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

// TestOtherRuntime: another runtime has the socket. Its list never reaches the
// engine, which would end all nodes, the plugin is not ready and says who answers,
// and it is back when the right one has created its socket again.
func TestOtherRuntime(t *testing.T) {
	dir, pods := t.TempDir(), plugintest.NewFakePods()
	own := plugintest.HostNetwork(plugintest.Sandbox("agent"))
	other := plugintest.StartRuntime(t, dir, plugintest.Sandbox("somebody", podspec.AnnotationEnabled, "true"))
	var h *statussocket.Health
	book := startPlugin(t, dir, pods, func(r *Registration) {
		r.Plugin.OwnUID, r.otherWait, h = own.Uid, time.Hour, r.Health
	})
	if err := plugintest.Receive(t, other.Synced, "Synchronize"); !plugintest.ErrContains(err, "containerd v2.4.2 answers on the NRI socket "+filepath.Join(dir, "nri.sock")) {
		t.Errorf("the runtime got %v", err)
	}
	book.Wait(t, "another runtime has taken the kubelet's socket", 1)
	if ok, text := h.Ready(); ok || !plugintest.ErrContains(otherRuntime{}, "does not run this pod") || len(text) > 350 {
		t.Errorf("ready is %v, %q", ok, text)
	}
	other.Stop()
	r := plugintest.StartRuntime(t, dir, own, plugintest.Sandbox("web", podspec.AnnotationEnabled, "true"))
	r.WaitSynced(t)
	if live := plugintest.Receive(t, pods.Synced, "Sync"); len(live) != 1 || live[0].Name != "web" || len(pods.Synced) != 0 {
		t.Errorf("live is %+v", live)
	}
	for deadline := time.Now().Add(plugintest.Patience); ; {
		ok, text := h.Ready()
		if ok {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(text)
		}
	}
	if n := book.Count("not registered with"); n != 1 {
		t.Errorf("the log says %d times that the plugin is not registered:\n%s", n, book)
	}
	if n := book.Count("msg=\"registered with"); n != 1 {
		t.Errorf("registered %d times:\n%s", n, book)
	}
}

// TestOtherRuntimeIsAskedAgain, though its socket stays: the pod's sandbox may
// have been missing for another reason.
func TestOtherRuntimeIsAskedAgain(t *testing.T) {
	dir, pods := t.TempDir(), plugintest.NewFakePods()
	r := plugintest.StartRuntime(t, dir)
	book := startPlugin(t, dir, pods, func(r *Registration) {
		r.Plugin.OwnUID, r.otherWait = "uid-agent", 10*time.Millisecond
	})
	for range 3 {
		if err := plugintest.Receive(t, r.Synced, "Synchronize"); err == nil {
			t.Error("it was taken")
		}
	}
	r.Mu.Lock()
	r.Sandboxes = []*api.PodSandbox{plugintest.Sandbox("agent")}
	r.Mu.Unlock()
	plugintest.Receive(t, pods.Synced, "Sync")
	if n := book.Count("level=WARN"); n != 1 {
		t.Errorf("%d warnings:\n%s", n, book)
	}
}
