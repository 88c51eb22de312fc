// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/scene"
)

// TestPolicy has a policy decide over containerd: a pod gets a node without an annotation, another is refused with the
// rule that does it, and a changed file counts for the next pods alone, without a restart.
func TestPolicy(t *testing.T) {
	t.Parallel()
	s := open(t, "policy")
	file := filepath.Join(t.TempDir(), "policy.yaml")
	write := func(text string) {
		s.must(os.WriteFile(file+".new", []byte(text), 0o600))
		s.must(os.Rename(file+".new", file)) // as the kubelet changes it: at once
	}
	const tags = "tailscale.com/tags"
	write("rules:\n- nam: shop\n") // a typo: no pod is served, by the default policy neither
	s.start("TS_POLICY_FILE=" + file)
	s.must(s.AwaitLog(s.ctx, "line 2: unknown key", "waiting until it is fixed"))
	write("rules:\n- name: shop\n  namespaces: [shop]\n  labels: {app: web}\n  optIn: true\n  allow: {tags: ['tag:k8s-*']}\n")
	s.must(s.Registered(s.ctx))

	spec := func(name string, notes map[string]string) lab.PodSpec {
		return lab.PodSpec{Name: name, Namespace: "shop", Labels: map[string]string{"app": "web"}, Annotations: notes}
	}
	web, err := s.RunSandbox(s.ctx, spec("web", nil))
	s.must(err)
	s.must(s.AwaitRunning(s.ctx, web))
	db, err := s.RunSandbox(s.ctx, spec("db", map[string]string{tags: "tag:k8s-db"}))
	s.must(err)
	s.must(s.AwaitRunning(s.ctx, db))
	_, err = s.Refused(s.ctx, spec("other", map[string]string{tags: "tag:other"}), tags, "tag:other", "rule 1 (shop) of "+file, "allow.tags")
	s.must(err)
	host := spec("host", nil)
	host.HostNetwork = true
	for _, left := range []lab.PodSpec{host, spec("out", map[string]string{"tailscale.com/enabled": "false"}), {Name: "plain", Namespace: "shop"}} {
		_, err := s.RunSandbox(s.ctx, left)
		s.must(err)
	}

	write("rules:\n- name: closed\n  namespaces: [shop]\n")
	s.must(s.AwaitLog(s.ctx, "the policy has changed"))
	_, err = s.Refused(s.ctx, spec("late", map[string]string{"tailscale.com/enabled": "true", tags: "tag:k8s-db"}), "rule 1 (closed)", "tag:k8s-db")
	s.must(err)
	write("rules: [")
	s.must(s.AwaitLog(s.ctx, file+" is not YAML", "going on with the old one"))
	if out := s.status(); !strings.Contains(out, "is not YAML") || strings.Count(out, "Running") != 2 || strings.Contains(out, "shop/host") {
		t.Errorf("tailscale-nri status says\n%s", out)
	}
	write("rules:\n- name: closed\n  namespaces: [shop]\n")
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} { // the pods are in no rule's favour any more
		before := fmt.Sprint(web.Node().NodeID, web.Node().Addresses, db.Node().NodeID, db.Node().Addresses)
		s.must(s.Plugin.End(s.ctx, sig))
		s.start("TS_POLICY_FILE=" + file)
		s.must(s.Registered(s.ctx))
		s.must(s.AwaitRunning(s.ctx, web))
		s.must(s.AwaitRunning(s.ctx, db))
		if after := fmt.Sprint(web.Node().NodeID, web.Node().Addresses, db.Node().NodeID, db.Node().Addresses); after != before {
			t.Errorf("%v: the nodes were %s, are %s", sig, before, after)
		}
	}
}

// TestEphemeralPod: neither end of the plugin costs an ephemeral node its device, though it would be gone with a log-out.
func TestEphemeralPod(t *testing.T) {
	t.Parallel()
	s := openServed(t, "ephem")
	pod, err := s.RunSandbox(s.ctx, lab.PodSpec{Name: "job", Annotations: scene.OptIn("tailscale.com/ephemeral", "true")})
	s.must(err)
	s.must(s.AwaitRunning(s.ctx, pod))
	ephemeral := func() (ids []string) {
		devices, err := s.plane.Devices(s.ctx)
		s.must(err)
		for _, d := range devices {
			if d.Ephemeral {
				ids = append(ids, d.ID)
			}
		}
		return ids
	}
	before := pod.Node()
	for _, sig := range []unix.Signal{unix.SIGKILL, unix.SIGTERM, unix.SIGKILL} {
		s.must(s.Plugin.End(s.ctx, sig))
		if ids := ephemeral(); !slices.Equal(ids, []string{before.NodeID}) {
			t.Errorf("%v: the ephemeral devices are %q, want %s", sig, ids, before.NodeID)
		}
		s.start()
		s.must(s.Registered(s.ctx))
		s.must(s.AwaitRunning(s.ctx, pod))
		if is := pod.Node(); is.NodeID != before.NodeID {
			t.Errorf("%v: the node is %s, was %s", sig, is.NodeID, before.NodeID)
		}
	}
	s.must(s.RemovePod(s.ctx, pod))
	s.must(s.AwaitTraces(s.ctx, scene.Traces{}))
}
