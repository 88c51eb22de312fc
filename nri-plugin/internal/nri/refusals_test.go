// SPDX-License-Identifier: BSD-3-Clause

package nri

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"

	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/podspec"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

func TestRefusals(t *testing.T) {
	var refused Refusals
	a, bad := plugintest.Sandbox("a"), errors.New("bad")
	if refused.ran(a, nil) || !refused.Note(a, bad, false) {
		t.Error("the first is not news, or has run")
	}
	if refused.Note(a, bad, false) || !refused.Note(a, errors.New("worse"), true) {
		t.Error("the same reason is news, or another is not")
	}
	refused.Note(a, bad, false)
	refused.Note(plugintest.Sandbox("b"), bad, false)
	if !refused.ran(a, nil) || refused.ran(plugintest.Sandbox("b"), nil) {
		t.Error("one that ran is no longer known to have, or another is")
	}
	want := []string{"default/a runs without a tailnet node: bad", "default/b gets no tailnet node: bad"}
	if got := statussocket.WarningLines(refused.Nodes()); !slices.Equal(got, want) {
		t.Errorf("lines %q, want %q", got, want)
	}
	refused.keep(map[string]bool{"id-b": true})
	if !refused.Note(a, bad, false) {
		t.Error("a sandbox that is gone is remembered")
	}
	refused.drop("id-a")
	if got := statussocket.WarningLines(refused.Nodes()); len(got) != 1 {
		t.Errorf("lines %q", got)
	}
	restarted := &api.Container{Annotations: map[string]string{annotationRestarts: "3"}}
	first := &api.Container{Annotations: map[string]string{annotationRestarts: "0"}}
	if !refused.ran(a, restarted) || refused.ran(a, first) {
		t.Error("the kubelet's count of restarts is not believed")
	}
}

// TestRanBefore: what ran while the plugin was away, and would be refused today,
// goes on and gets its next container, whatever the runtime still lists of it. A
// new sandbox of the same pod is refused.
func TestRanBefore(t *testing.T) {
	ingress := plugintest.HostNetwork(plugintest.Sandbox("ingress", podspec.AnnotationEnabled, "true"))
	typo := plugintest.Sandbox("typo", podspec.AnnotationPrefix+"enable", "true")
	kata := plugintest.Sandbox("kata", podspec.AnnotationEnabled, "true")
	kata.RuntimeHandler = "kata"
	waits := plugintest.Sandbox("waits", podspec.AnnotationEnabled, "yes please")
	for _, tt := range []struct {
		name       string
		containers []*api.Container
		create     func(*plugintest.Runtime, *api.PodSandbox) error
	}{
		{"one of them runs", []*api.Container{
			{Id: "1", PodSandboxId: ingress.Id}, {Id: "2", PodSandboxId: typo.Id}, {Id: "3", PodSandboxId: kata.Id},
		}, func(r *plugintest.Runtime, sb *api.PodSandbox) error { return r.Create(sb, "second") }},
		{"the only one has exited", nil, func(r *plugintest.Runtime, sb *api.PodSandbox) error { return r.Restart(sb, "main") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, pods := t.TempDir(), plugintest.NewFakePods()
			r := plugintest.StartRuntime(t, dir, ingress, typo, kata, waits)
			r.Containers = tt.containers
			p := make(chan *Plugin, 1)
			book := startPlugin(t, dir, pods, func(r *Registration) { p <- r.Plugin })
			r.WaitSynced(t)
			for _, sb := range []*api.PodSandbox{ingress, typo, kata} {
				for range 2 {
					if err := tt.create(r, sb); err != nil {
						t.Errorf("%s: the runtime got %v", sb.Name, err)
					}
				}
				if err := r.RunPod(sb); !plugintest.ErrContains(err, "tailscale-nri: pod default/"+sb.Name+": ") {
					t.Errorf("%s, a new sandbox: the runtime got %v", sb.Name, err)
				}
			}
			if err := r.Create(waits, "main"); !plugintest.ErrContains(err, "yes please") {
				t.Errorf("one that never ran: the runtime got %v", err)
			}
			if n := book.Count("sandbox=id-ingress") - book.Count("hook done"); n > 2 {
				t.Errorf("the log has %d lines of one pod:\n%s", n, book)
			}
			lines := strings.Join(statussocket.WarningLines((<-p).Refused.Nodes()), "\n")
			for _, want := range []string{"default/ingress runs without", "default/kata runs without", "default/typo runs without", "default/waits gets no"} {
				if !strings.Contains(lines, want) {
					t.Errorf("the status does not say %q:\n%s", want, lines)
				}
			}
			if len(pods.Attached) != 0 {
				t.Error("one of them was attached")
			}
			if err := r.StopPodSandbox(t.Context(), &adaptation.StopPodSandboxRequest{Pod: ingress}); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestHandlers: a pod is refused whose runtime handler is not known to share the
// host's kernel, and one that has its node keeps it.
func TestHandlers(t *testing.T) {
	known, err := podspec.ParseHandlers("runc, nvidia,crun")
	if err != nil {
		t.Fatal(err)
	}
	for handler, ok := range map[string]bool{"": true, "runc": true, "nvidia": true, "runsc": false, "kata-qemu": false, "nvidia-2": false} {
		sb := plugintest.Sandbox("web", podspec.AnnotationEnabled, "true")
		sb.RuntimeHandler = handler
		p := &Plugin{Pods: plugintest.NewFakePods(), Defaults: openDefaults, Handlers: known}
		pod, in, err := p.podOf(sb)
		if in != ok || (err == nil) != ok || pod.SandboxID != "id-web" {
			t.Errorf("%q: %v, %v", handler, in, err)
		}
		for _, want := range []string{podspec.AnnotationEnabled, "runtimeClassName", `"` + handler + `"`, settings.RuntimeHandlers} {
			if !ok && !strings.Contains(err.Error(), want) {
				t.Errorf("%q does not say %q", err, want)
			}
		}
		p.Handlers = []string{"*"}
		if _, in, err := p.podOf(sb); !in || err != nil {
			t.Errorf("%q, and any is known: %v", handler, err)
		}
		delete(sb.Annotations, podspec.AnnotationEnabled)
		if _, in, err := p.podOf(sb); in || err != nil {
			t.Errorf("%q, not opted in: %v, %v", handler, in, err)
		}
	}
	for _, bad := range []string{"runc,,crun", "io.containerd.runc.v2", "Runc", "runc crun"} {
		if _, err := podspec.ParseHandlers(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	pods := plugintest.NewFakePods()
	served, stranger, onDisk := plugintest.Sandbox("served", podspec.AnnotationEnabled, "true"), plugintest.Sandbox("stranger", podspec.AnnotationEnabled, "true"), plugintest.Sandbox("disk", podspec.AnnotationEnabled, "true")
	served.RuntimeHandler, stranger.RuntimeHandler, onDisk.RuntimeHandler = "mine", "mine", "mine"
	pods.Serving.Store("uid-served id-served", true)
	pods.Known.Store("uid-disk id-disk", true) // and not served yet, as after a restart of the plugin
	dir := t.TempDir()
	r := plugintest.StartRuntime(t, dir, served, stranger)
	startPlugin(t, dir, pods)
	r.WaitSynced(t)
	if live := plugintest.Receive(t, pods.Synced, "Sync"); len(live) != 1 || live[0].Name != "served" {
		t.Errorf("live is %+v", live)
	}
	for _, sb := range []*api.PodSandbox{served, onDisk} {
		if err := r.Create(sb, "main"); err != nil {
			t.Error(err)
		}
	}
	if pod := plugintest.Receive(t, pods.Attached, "Attach"); pod.Name != "disk" {
		t.Errorf("attached %+v", pod)
	}
}

// TestRefusalIsSaidOnce: a pod that is refused again and again has one line for each reason, and not many of them.
func TestRefusalIsSaidOnce(t *testing.T) {
	var r Refusals
	var said int
	for range 3 {
		for i := range 20 {
			if r.isNews("uid-a", fmt.Errorf("reason %d", i)) {
				said++
			}
		}
	}
	if said != mostSaid || !r.isNews("uid-b", errors.New("reason 0")) || r.isNews("uid-b", errors.New("reason 0")) {
		t.Errorf("%d lines, want %d", said, mostSaid)
	}
}
