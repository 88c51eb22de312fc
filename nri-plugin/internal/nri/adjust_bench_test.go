// SPDX-License-Identifier: BSD-3-Clause

package nri

import (
	"context"
	"log/slog"
	"testing"

	"github.com/containerd/nri/pkg/api"

	"tailscale-nri/nri-plugin/internal/metrics"
	"tailscale-nri/nri-plugin/internal/ocihook"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/podspec"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

// BenchmarkAdjust is what CreateContainer costs in this process, without the runtime's way to it: for a pod that has not
// opted in, for one that asks for a node alone, and for those that ask for more. The engine is one that only remembers.
func BenchmarkAdjust(b *testing.B) {
	log := slog.New(slog.NewTextHandler(b.Output(), nil))
	dir, pods, names := b.TempDir(), plugintest.NewFakePods(), plugintest.FakeResolver{"uid-dns": dnsFile, "uid-all": dnsFile}
	p := &Plugin{
		Pods: pods, Defaults: openDefaults, Resolver: names, Hooks: ocihook.NewServer(dir, pods, names, log), Log: log,
		Meters: metrics.New(&statussocket.Health{}, 0),
	}
	b.Cleanup(p.Hooks.Close)
	const in = podspec.AnnotationEnabled
	for _, bb := range []struct {
		sb             *api.PodSandbox
		mounts, hooked int // what its containers get
	}{
		{plugintest.Sandbox("out"), 0, 0},
		{plugintest.Sandbox("plain", in, "true"), 0, 0},
		{plugintest.Sandbox("socket", in, "true", podspec.AnnotationSocket, "true"), 1, 0},
		{plugintest.Sandbox("wait", in, "true", podspec.AnnotationWait, "30s"), 0, 1},
		// A mount that is replaced is one that is removed and one that is added.
		{plugintest.Sandbox("dns", in, "true", podspec.AnnotationDNS, "true"), 2, 1},
		{plugintest.Sandbox("all", in, "true", podspec.AnnotationDNS, "true", podspec.AnnotationSocket, "true", podspec.AnnotationWait, "30s"), 3, 1},
	} {
		c := &api.Container{Id: "main", PodSandboxId: bb.sb.Id, Name: "main", Mounts: []*api.Mount{resolvMount(bb.sb, "rw")}}
		if err := p.RunPodSandbox(context.Background(), bb.sb); err != nil {
			b.Fatal(err)
		}
		b.Run(bb.sb.Name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				a, _, err := p.CreateContainer(context.Background(), bb.sb, c)
				if err != nil || len(a.GetMounts()) != bb.mounts || len(a.GetHooks().GetCreateRuntime()) != bb.hooked {
					b.Fatalf("got %v, %v", a, err)
				}
			}
		})
	}
}

// dnsFile is a path that nobody opens.
const dnsFile = "/state/resolv.conf"
