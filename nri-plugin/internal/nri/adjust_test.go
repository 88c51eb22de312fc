// SPDX-License-Identifier: BSD-3-Clause

package nri

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	validator "github.com/containerd/nri/plugins/default-validator/builtin"

	"tailscale-nri/nri-plugin/internal/ocihook"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/podspec"
	"tailscale-nri/nri-plugin/internal/settings"
)

// resolvMount is the sandbox's, as containerd has it.
func resolvMount(sb *api.PodSandbox, options ...string) *api.Mount {
	return &api.Mount{
		Destination: resolvConf, Type: "bind", Options: append([]string{"rbind", "rprivate"}, options...),
		Source: "/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/" + sb.GetId() + "/resolv.conf",
	}
}

// startAdjusting is startPlugin with all that adjust needs, in a directory of its own.
func startAdjusting(t *testing.T, r ocihook.Resolver, options ...adaptation.Option) (*plugintest.Runtime, *plugintest.FakePods, string) {
	t.Helper()
	dir, pods := t.TempDir(), plugintest.NewFakePods()
	rt := plugintest.StartRuntimeWith(t, dir, options)
	startPlugin(t, dir, pods, func(reg *Registration) {
		reg.Plugin.Resolver = r
		reg.Plugin.Hooks = ocihook.NewServer(dir, pods, r, reg.Log)
		t.Cleanup(reg.Plugin.Hooks.Close)
	})
	rt.WaitSynced(t)
	return rt, pods, dir
}

// TestAdjust: a container gets what its pod asks for, and no other gets anything.
func TestAdjust(t *testing.T) {
	names := plugintest.FakeResolver{"uid-dns": "/state/uid-dns/resolv.conf", "uid-all": "/state/uid-all/resolv.conf"}
	r, _, _ := startAdjusting(t, names)
	const in = podspec.AnnotationEnabled
	userNS := plugintest.Sandbox("dns", in, "true", podspec.AnnotationDNS, "true")
	userNS.Linux.Namespaces = append(userNS.Linux.Namespaces, &api.LinuxNamespace{Type: "user", Path: "/proc/4711/ns/user"})
	own := &api.Mount{Destination: resolvConf, Source: "/var/lib/kubelet/pods/x/volumes/own/resolv.conf", Type: "bind"}
	for _, tt := range []struct {
		name   string
		sb     *api.PodSandbox
		mounts []*api.Mount
		want   string // the mounts
		hook   string // what its argument has
	}{
		{"out", plugintest.Sandbox("out", podspec.AnnotationSocket, "true"), nil, "", ""},
		{"plain", plugintest.Sandbox("plain", in, "true"), nil, "", ""},
		{"off", plugintest.Sandbox("off", in, "true", podspec.AnnotationSocket, "false"), nil, "", ""},
		{"socket", plugintest.Sandbox("socket", in, "true", podspec.AnnotationSocket, "true"), nil,
			"/state/uid-socket/socket /var/run/tailscale rbind,rprivate,ro,nosuid,nodev,noexec", ""},
		{"own socket", plugintest.Sandbox("socket", in, "true", podspec.AnnotationSocket, "true"),
			[]*api.Mount{{Destination: "/run/tailscale/", Source: "/srv", Type: "bind"}}, "", ""},
		{"own socket below", plugintest.Sandbox("socket", in, "true", podspec.AnnotationSocket, "true"),
			[]*api.Mount{{Destination: "/var/run/tailscale/tailscaled.sock", Source: "/srv/its.sock", Type: "bind"}}, "", ""},
		{"next to the socket", plugintest.Sandbox("socket", in, "true", podspec.AnnotationSocket, "true"),
			[]*api.Mount{{Destination: "/var/run/tailscale2", Source: "/srv", Type: "bind"}},
			"/state/uid-socket/socket /var/run/tailscale rbind,rprivate,ro,nosuid,nodev,noexec", ""},
		{"wait", plugintest.Sandbox("wait", in, "true", podspec.AnnotationWait, "30s"), nil, "", `"wait":30000000000,"value":"30s","fails":true}`},
		{"start", plugintest.Sandbox("wait", in, "true", podspec.AnnotationWait, "30s", podspec.AnnotationWaitPolicy, "start"), nil, "", `"value":"30s"}`},
		{"no names", plugintest.Sandbox("none", in, "true", podspec.AnnotationDNS, "true"), []*api.Mount{resolvMount(plugintest.Sandbox("none"))}, "", ""},
		{"names", plugintest.Sandbox("dns", in, "true", podspec.AnnotationDNS, "true"), []*api.Mount{resolvMount(plugintest.Sandbox("dns"), "ro")},
			"/state/uid-dns/resolv.conf /etc/resolv.conf rbind,rprivate,ro", `/sandboxes/id-dns/resolv.conf","resolvTo":"/state/uid-dns/resolv.conf"`},
		{"names under a user namespace", userNS, []*api.Mount{resolvMount(userNS, "rw")},
			"/state/uid-dns/resolv.conf /etc/resolv.conf rbind,rprivate,ro,idmap", `"resolvTo"`},
		{"own names", plugintest.Sandbox("dns", in, "true", podspec.AnnotationDNS, "true"), []*api.Mount{own}, "", ""},
		{"all", plugintest.Sandbox("all", in, "true", podspec.AnnotationWait, "9s", podspec.AnnotationSocket, "true", podspec.AnnotationDNS, "true"),
			[]*api.Mount{resolvMount(plugintest.Sandbox("all"), "rw")},
			"/state/uid-all/socket /var/run/tailscale rbind,rprivate,ro,nosuid,nodev,noexec " +
				"/state/uid-all/resolv.conf /etc/resolv.conf rbind,rprivate,ro", `"wait":9000000000`},
	} {
		if err := r.RunPod(tt.sb); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		got, err := r.Adjusted(tt.sb, tt.mounts...)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		var mounts []string
		for _, m := range got.GetMounts() {
			mounts = append(mounts, m.Source, m.Destination, strings.Join(m.Options, ","))
		}
		// The runtime's own order is not guaranteed, and what is removed and added again comes once (NRI 0.12.5).
		want := strings.Fields(tt.want)
		slices.Sort(want)
		slices.Sort(mounts)
		if !slices.Equal(mounts, want) {
			t.Errorf("%s: mounts %q, want %q", tt.name, mounts, want)
		}
		hooks := got.GetHooks().GetCreateRuntime()
		switch {
		case tt.hook == "" && len(hooks) != 0, tt.hook != "" && len(hooks) != 1:
			t.Errorf("%s: hooks %v", tt.name, hooks)
		case tt.hook != "" && !strings.Contains(hooks[0].Args[2], tt.hook):
			t.Errorf("%s: the hook is called with %q, want %s in it", tt.name, hooks[0].Args, tt.hook)
		}
	}
}

// TestAdjustFails: what cannot be had is the container's error, with the pod's name.
func TestAdjustFails(t *testing.T) {
	r, _, _ := startAdjusting(t, plugintest.FakeResolver{"uid-a": "error"})
	sb := plugintest.Sandbox("a", podspec.AnnotationEnabled, "true", podspec.AnnotationDNS, "true")
	if err := r.RunPod(sb); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Adjusted(sb, resolvMount(sb)); !plugintest.ErrContains(err, "tailscale-nri: pod default/a: no space left") {
		t.Errorf("got %v", err)
	}
}

// TestHookForbidden: what a runtime says that takes no hooks from plugins is in the
// guide, and nothing but the wait is refused.
func TestHookForbidden(t *testing.T) {
	r, _, _ := startAdjusting(t, nil, adaptation.WithDefaultValidator(
		&validator.DefaultValidatorConfig{Enable: true, RejectOCIHookAdjustment: true}))
	for _, tt := range []struct{ name, key, value, says string }{
		{"wait", podspec.AnnotationWait, "30s", "attempted restricted OCI hook injection"},
		{"socket", podspec.AnnotationSocket, "true", ""},
	} {
		sb := plugintest.Sandbox(tt.name, podspec.AnnotationEnabled, "true", tt.key, tt.value)
		if err := r.RunPod(sb); err != nil {
			t.Fatal(err)
		}
		_, err := r.Adjusted(sb)
		if tt.says == "" && err != nil || tt.says != "" && !plugintest.ErrContains(err, tt.says) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.says)
		}
	}
	guide, err := os.ReadFile("../../../deploy/TROUBLESHOOTING.md")
	if err != nil || !strings.Contains(string(guide), "attempted restricted OCI hook injection") {
		t.Errorf("the guide has nothing on it (%v)", err)
	}
}

// TestAdjustRefused: a pod that is refused for something else is refused before that.
func TestAdjustRefused(t *testing.T) {
	r, _, dir := startAdjusting(t, nil)
	kata := plugintest.Sandbox("kata", podspec.AnnotationEnabled, "true", podspec.AnnotationWait, "30s")
	kata.RuntimeHandler = "kata"
	host := plugintest.HostNetwork(plugintest.Sandbox("host", podspec.AnnotationEnabled, "true", podspec.AnnotationSocket, "true"))
	for sb, text := range map[*api.PodSandbox]string{kata: settings.RuntimeHandlers, host: "hostNetwork"} {
		if err := r.RunPod(sb); !plugintest.ErrContains(err, text) {
			t.Errorf("%s: the sandbox: %v", sb.Name, err)
		}
		if _, err := r.Adjusted(sb); !plugintest.ErrContains(err, text) {
			t.Errorf("%s: the container: %v", sb.Name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, ".hook")); err == nil {
		t.Error("a hook was made for nobody")
	}
}

// hookOf is the hook that the runtime would run for a container of the sandbox.
func hookOf(t *testing.T, r *plugintest.Runtime, sb *api.PodSandbox, mounts ...*api.Mount) *api.Hook {
	t.Helper()
	if err := r.RunPod(sb); err != nil {
		t.Fatal(err)
	}
	a, err := r.Adjusted(sb, mounts...)
	if err != nil || len(a.GetHooks().GetCreateRuntime()) != 1 {
		t.Fatalf("got %v, %v", a, err)
	}
	hook := a.Hooks.CreateRuntime[0]
	if len(hook.Env) == 0 {
		t.Error("the hook has no environment of its own, and so all of the runtime's")
	}
	return hook
}

// call runs the hook in this process.
func call(hook *api.Hook) error {
	state, _ := json.Marshal(map[string]any{"pid": os.Getpid()})
	return ocihook.Run(hook.Args, strings.NewReader(string(state)))
}
