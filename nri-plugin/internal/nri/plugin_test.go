// SPDX-License-Identifier: BSD-3-Clause

package nri

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"

	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/podspec"
)

// TestSynchronize: the runtime lists sandboxes of every kind, and drops the
// plugin when it cannot catch up the first time.
func TestSynchronize(t *testing.T) {
	dir, pods := t.TempDir(), plugintest.NewFakePods()
	tries := 0
	pods.AnswerSync = func() error {
		if tries++; tries == 1 {
			return errors.New("disk full")
		}
		return nil
	}
	r := plugintest.StartRuntime(t, dir,
		plugintest.Sandbox("a", podspec.AnnotationEnabled, "true"),
		plugintest.Sandbox("plain"),
		plugintest.Stopped(plugintest.Sandbox("old", podspec.AnnotationEnabled, "true")),
		plugintest.HostNetwork(plugintest.Sandbox("host", podspec.AnnotationEnabled, "true")),
		plugintest.Sandbox("invalid", podspec.AnnotationEnabled, "yes please"),
		plugintest.Sandbox("b", podspec.AnnotationEnabled, "true", podspec.AnnotationHostname, "bee"),
	)
	book := startPlugin(t, dir, pods)
	if err := plugintest.Receive(t, r.Synced, "Synchronize"); !plugintest.ErrContains(err, "disk full") {
		t.Errorf("the runtime got %v", err)
	}
	r.WaitSynced(t)
	for range 2 {
		live := plugintest.Receive(t, pods.Synced, "Sync")
		if len(live) != 2 || live[0].SandboxID != "id-a" || live[1].Hostname != "bee" {
			t.Errorf("live is %+v", live)
		}
	}
	if ended := *pods.SyncedEnded.Load(); len(ended) != 1 || ended[0] != "id-old" {
		t.Errorf("ended is %q", ended)
	}
	if err := r.RunPod(plugintest.Sandbox("c", podspec.AnnotationEnabled, "true")); err != nil {
		t.Error(err)
	}
	plugintest.Receive(t, pods.Attached, "Attach")
	for text, n := range map[string]int{
		"pod=default/invalid uid=uid-invalid sandbox=id-invalid": 1,
		"pod=default/host":                  1,
		"pod=default/plain":                 0,
		"pod=default/old":                   0,
		"runtime=containerd version=v2.4.2": 2,
		"disk full":                         1,
	} {
		if got := book.Count(text); got != n {
			t.Errorf("the log says %q %d times, want %d", text, got, n)
		}
	}
}

// TestHooks: a pod's events over a real socket.
func TestHooks(t *testing.T) {
	dir, pods := t.TempDir(), plugintest.NewFakePods()
	r := plugintest.StartRuntime(t, dir)
	book := startPlugin(t, dir, pods)
	r.WaitSynced(t)
	ctx := context.Background()

	web := plugintest.Sandbox("web", podspec.AnnotationEnabled, "true", podspec.AnnotationTags, "tag:web")
	if err := r.RunPod(web); err != nil {
		t.Fatal(err)
	}
	if pod := plugintest.Receive(t, pods.Attached, "Attach"); pod.SandboxID != "id-web" || pod.Tags[0] != "tag:web" ||
		pod.NetNS != "/var/run/netns/cni-web" || pod.PID != 4711 || pod.Hostname != "k8s-default-web" {
		t.Errorf("attached %+v", pod)
	}
	for range 2 { // calls may come twice
		if err := r.StopPodSandbox(ctx, &adaptation.StopPodSandboxRequest{Pod: web}); err != nil {
			t.Error(err)
		}
		if err := r.RemovePodSandbox(ctx, &adaptation.RemovePodSandboxRequest{Pod: web}); err != nil {
			t.Error(err)
		}
		for _, want := range []string{"detach id-web", "forget id-web"} {
			if got := plugintest.Receive(t, pods.Ended, want); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
	}
	if err := r.RunPod(plugintest.Sandbox("plain", podspec.AnnotationHostname, "my_host")); err != nil {
		t.Error(err)
	}
	for _, sb := range []*api.PodSandbox{
		plugintest.Sandbox("bad", podspec.AnnotationEnabled, "yes please"),
		plugintest.Sandbox("typo", podspec.AnnotationPrefix+"enable", "true"),
		plugintest.HostNetwork(plugintest.Sandbox("host", podspec.AnnotationEnabled, "true")),
	} {
		err := r.RunPod(sb)
		if !plugintest.ErrContains(err, "tailscale-nri: pod default/"+sb.Name+": ") || !strings.Contains(err.Error(), podspec.AnnotationPrefix+"enable") {
			t.Errorf("%s: the runtime got %v", sb.Name, err)
		}
	}
	pods.Answer(func(context.Context) error { return errors.New("creating ts0: no buffer space") })
	if err := r.RunPod(web); !plugintest.ErrContains(err, "pod default/web: creating ts0: no buffer space") {
		t.Errorf("the runtime got %v", err)
	}
	if n := len(pods.Attached); n != 1 {
		t.Errorf("%d calls of Attach for the last pod and all that asked for nothing", n)
	}
	if got := book.Count("registered with"); got != 1 {
		t.Errorf("registered %d times", got)
	}
}

// TestRemoveContainer: the removal of a container has the engine look whether the
// sandbox is still there, which the runtime may not say by itself.
func TestRemoveContainer(t *testing.T) {
	dir, pods := t.TempDir(), plugintest.NewFakePods()
	r := plugintest.StartRuntime(t, dir)
	startPlugin(t, dir, pods)
	r.WaitSynced(t)
	sb := plugintest.Sandbox("a", podspec.AnnotationEnabled, "true")
	err := r.RemoveContainer(t.Context(), &adaptation.RemoveContainerRequest{
		Pod: sb, Container: &api.Container{Id: "main", PodSandboxId: sb.Id, Name: "main"},
	})
	if err != nil {
		t.Error(err)
	}
	if id := plugintest.Receive(t, pods.Suspected, "Suspect"); id != sb.Id {
		t.Errorf("sandbox %s is suspected, want %s", id, sb.Id)
	}
}

// TestMissedPod: a pod that has started without the plugin is attached when its first
// container is to be created, or that container is refused.
func TestMissedPod(t *testing.T) {
	dir, pods := t.TempDir(), plugintest.NewFakePods()
	r := plugintest.StartRuntime(t, dir)
	book := startPlugin(t, dir, pods)
	r.WaitSynced(t)
	missed := plugintest.Sandbox("missed", podspec.AnnotationEnabled, "true", podspec.AnnotationHostname, "late")
	failing := errors.New("the state directory has no free space")
	pods.Answer(func(context.Context) error { return failing })
	if err := r.Create(missed, "init"); !plugintest.ErrContains(err, "tailscale-nri: pod default/missed: "+failing.Error()) {
		t.Errorf("the runtime got %v", err)
	}
	pods.Answer(nil)
	for _, name := range []string{"init", "init", "main", "sidecar"} { // some come twice
		if err := r.Create(missed, name); err != nil {
			t.Error(err)
		}
	}
	if n := len(pods.Attached); n != 2 {
		t.Errorf("%d calls of Attach, want the one that failed and the one that did not", n)
	}
	if pod := plugintest.Receive(t, pods.Attached, "Attach"); pod.SandboxID != "id-missed" || pod.Hostname != "late" {
		t.Errorf("attached %+v", pod)
	}
	plugintest.Receive(t, pods.Attached, "the second Attach")

	met := plugintest.Sandbox("met", podspec.AnnotationEnabled, "true")
	if err := errors.Join(r.RunPod(met), r.Create(met, "main"), r.Create(plugintest.Sandbox("plain"), "main")); err != nil {
		t.Error(err)
	}
	if plugintest.Receive(t, pods.Attached, "Attach"); len(pods.Attached) != 0 {
		t.Error("attached what was attached, or never asked to be")
	}
	for _, sb := range []*api.PodSandbox{
		plugintest.Sandbox("bad", podspec.AnnotationEnabled, "yes please"),
		plugintest.Sandbox("typo", podspec.AnnotationPrefix+"enable", "true"),
		plugintest.HostNetwork(plugintest.Sandbox("host", podspec.AnnotationEnabled, "true")),
	} {
		if err := r.Create(sb, "main"); !plugintest.ErrContains(err, "tailscale-nri: pod default/"+sb.Name+": ") {
			t.Errorf("%s: the runtime got %v", sb.Name, err)
		}
	}
	pods.Answer(func(context.Context) error { // it waits for its turn, and Sync had the one before
		pods.Serving.Store("uid-raced id-raced", true)
		return nil
	})
	if err := r.Create(plugintest.Sandbox("raced", podspec.AnnotationEnabled, "true"), "main"); err != nil {
		t.Error(err)
	}
	plugintest.Receive(t, pods.Attached, "Attach of the one that Sync was faster for")
	if n := book.Count("attached when a container was to be created"); n != 1 {
		t.Errorf("the log says %d times that a pod was attached late", n)
	}
}

// TestUnfinishedPod: the first container of a pod whose link is not whole waits for that,
// and is refused where it cannot be; such a pod has not started without the plugin.
func TestUnfinishedPod(t *testing.T) {
	dir, pods := t.TempDir(), plugintest.NewFakePods()
	pods.Unfinished.Store(true)
	r := plugintest.StartRuntime(t, dir)
	book := startPlugin(t, dir, pods)
	r.WaitSynced(t)
	sb := plugintest.Sandbox("a", podspec.AnnotationEnabled, "true")
	if err := r.RunPod(sb); err != nil {
		t.Fatal(err)
	}
	plugintest.Receive(t, pods.Attached, "AttachEmpty")
	failing := errors.New("adding the drop filter (kernel module cls_bpf): no such file or directory")
	pods.Answer(func(context.Context) error { return failing })
	if err := r.Create(sb, "main"); !plugintest.ErrContains(err, "tailscale-nri: pod default/a: "+failing.Error()) {
		t.Errorf("the runtime got %v", err)
	}
	plugintest.Receive(t, pods.Attached, "Attach")
	pods.Answer(nil)
	for _, name := range []string{"main", "sidecar"} {
		if err := r.Create(sb, name); err != nil {
			t.Error(err)
		}
	}
	if plugintest.Receive(t, pods.Attached, "the second Attach"); len(pods.Attached) != 0 {
		t.Error("a whole link is completed again")
	}
	if n := book.Count("attached when a container was to be created"); n != 0 {
		t.Errorf("the log says %d times that the pod was attached late", n)
	}
}

// TestServedPodPasses, however its annotations would be read today.
func TestServedPodPasses(t *testing.T) {
	dir, pods := t.TempDir(), plugintest.NewFakePods()
	r := plugintest.StartRuntime(t, dir)
	startPlugin(t, dir, pods)
	r.WaitSynced(t)
	sb := plugintest.Sandbox("a", podspec.AnnotationEnabled, "yes please")
	pods.Serving.Store("uid-a id-a", true)
	if err := r.Create(sb, "main"); err != nil {
		t.Error(err)
	}
}

// TestSlowAttach: what does not answer costs the pod a clear error within the
// runtime's 2 s, and costs the next pod nothing.
func TestSlowAttach(t *testing.T) {
	dir, pods := t.TempDir(), plugintest.NewFakePods()
	pods.Answer(func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	})
	r := plugintest.StartRuntime(t, dir)
	book := startPlugin(t, dir, pods)
	r.WaitSynced(t)
	if err := r.RunPod(plugintest.Sandbox("slow", podspec.AnnotationEnabled, "true")); !plugintest.ErrContains(err, "pod default/slow: ") || !plugintest.ErrContains(err, "context deadline exceeded") {
		t.Errorf("the runtime got %v", err)
	}
	plugintest.Receive(t, pods.Attached, "Attach")
	pods.Answer(nil)
	if err := r.RunPod(plugintest.Sandbox("next", podspec.AnnotationEnabled, "true")); err != nil {
		t.Error(err)
	}
	if pod := plugintest.Receive(t, pods.Attached, "Attach"); pod.Name != "next" {
		t.Errorf("attached %s", pod.Name)
	}
	if book.Count("registered with") != 1 || book.Count("hook done") != 1 || book.Count("refused, the kubelet") != 1 || book.Count("level=WARN") != 2 {
		t.Errorf("want one registration, and one warning each of a slow hook and of the refusal:\n%s", book.String())
	}
}

// TestStuckAttach: what hangs in a hook is an error before the runtime gives up
// waiting, however short it waits, so that the connection stays and the next pod
// has its hook.
func TestStuckAttach(t *testing.T) {
	adaptation.SetPluginRequestTimeout(300 * time.Millisecond)
	t.Cleanup(func() { adaptation.SetPluginRequestTimeout(adaptation.DefaultPluginRequestTimeout) })
	dir, pods := t.TempDir(), plugintest.NewFakePods()
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	pods.Answer(func(context.Context) error {
		<-release
		return nil
	})
	r := plugintest.StartRuntime(t, dir)
	startPlugin(t, dir, pods)
	r.WaitSynced(t)
	if err := r.RunPod(plugintest.Sandbox("stuck", podspec.AnnotationEnabled, "true")); !plugintest.ErrContains(err, "pod default/stuck: not done within") {
		t.Errorf("the runtime got %v", err)
	}
	if err := r.StopPodSandbox(context.Background(), &adaptation.StopPodSandboxRequest{Pod: plugintest.Sandbox("other")}); err != nil {
		t.Error(err)
	}
	if got := plugintest.Receive(t, pods.Ended, "Detach"); got != "detach id-other" {
		t.Error(got)
	}
}

// TestStuckCreate: nothing that hangs lets a container pass that is to wait for its
// pod's node: the runtime takes a late answer for a good one.
func TestStuckCreate(t *testing.T) {
	dir, pods := t.TempDir(), plugintest.NewFakePods()
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	pods.Answer(func(context.Context) error {
		<-release
		return nil
	})
	r := plugintest.StartRuntime(t, dir)
	book := startPlugin(t, dir, pods)
	r.WaitSynced(t)
	stuck := plugintest.Sandbox("stuck", podspec.AnnotationEnabled, "true")
	for event, err := range map[string]error{"RunPodSandbox": r.RunPod(stuck), "CreateContainer": r.Create(stuck, "main")} {
		if !plugintest.ErrContains(err, "tailscale-nri: pod default/stuck: ") || !plugintest.ErrContains(err, HookBudget.String()) {
			t.Errorf("%s: the runtime got %v", event, err)
		}
	}
	if n := book.Count("registered with"); n != 1 {
		t.Errorf("registered %d times", n)
	}
}

// TestConfigure: a configuration that would be ignored is refused.
func TestConfigure(t *testing.T) {
	c := connection{&Plugin{Log: slog.New(slog.DiscardHandler)}, newSession("", nil)}
	if mask, err := c.Configure(context.Background(), "", "containerd", "v2.4.2"); mask != 0 || err != nil {
		t.Errorf("got %v, %v", mask, err)
	}
	if got := *c.runtime.Load(); got != (runtimeName{"containerd", "v2.4.2"}) {
		t.Errorf("the runtime is %v", got)
	}
	if _, err := c.Configure(context.Background(), "tags: [tag:a]", "containerd", "v2.4.2"); !plugintest.ErrContains(err, "environment") {
		t.Errorf("got %v", err)
	}
}
