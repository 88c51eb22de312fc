// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/scene"
)

// TestProfile has a pod come in by a profile's credentials, which a rule allows. The profile goes, and the pod goes on;
// the pod goes, and its device waits for the profile, which comes back. None of that needs a restart.
func TestProfile(t *testing.T) {
	t.Parallel()
	s := open(t, "profile")
	dir := t.TempDir()
	put := func(name, text string) { s.must(os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600)) }
	profile := map[string]string{
		"prod.TS_OAUTH_CLIENT_ID": s.plane.OAuthClientID, "prod.TS_OAUTH_CLIENT_SECRET": s.plane.OAuthClientSecret,
		"prod.TS_LOGIN_SERVER": s.plane.ControlURL, "prod.TS_API_URL": s.plane.APIURL, "prod.TS_TAGS": "tag:prod",
	}
	for name, text := range profile {
		put(name, text)
	}
	put("policy.yaml", "rules: [{namespaces: [default], allow: {profiles: [prod]}}]")
	s.start("TS_CONFIG_DIR="+dir, "TS_POLICY_FILE="+filepath.Join(dir, "policy.yaml"))
	s.must(s.Registered(s.ctx))

	const key = "tailscale.com/profile"
	pod, err := s.RunSandbox(s.ctx, lab.PodSpec{Name: "web", Annotations: scene.OptIn(key, "prod")})
	s.must(err)
	s.must(s.AwaitRunning(s.ctx, pod))
	other := s.run("other")
	s.must(s.AwaitRunning(s.ctx, other))
	tags := func() map[string][]string {
		devices, err := s.plane.Devices(s.ctx)
		s.must(err)
		out := map[string][]string{}
		for _, d := range devices {
			out[d.ID] = d.Tags
		}
		return out
	}
	if got := tags(); !slices.Equal(got[pod.Node().NodeID], []string{"tag:prod"}) || !slices.Equal(got[other.Node().NodeID], []string{"tag:k8s-pod"}) {
		t.Errorf("the devices have the tags %v", got)
	}
	_, err = s.Refused(s.ctx, lab.PodSpec{Name: "none", Annotations: scene.OptIn(key, "test")}, key, `"test"`, "rule 1", "allow.profiles")
	s.must(err)

	for name := range profile {
		s.must(os.Remove(filepath.Join(dir, name)))
	}
	was := fmt.Sprint(pod.Node().NodeID, pod.Node().Addresses)
	s.must(s.AwaitLog(s.ctx, "the configuration has changed", "prod.TS_TAGS"))
	s.must(s.AwaitRunning(s.ctx, other))
	s.must(s.AwaitRunning(s.ctx, pod))
	if is := fmt.Sprint(pod.Node().NodeID, pod.Node().Addresses); is != was {
		t.Errorf("without its profile the node is %s, was %s", is, was)
	}
	_, err = s.Refused(s.ctx, lab.PodSpec{Name: "late", Annotations: scene.OptIn(key, "prod")}, key, `"prod"`, "there is none", "prod.TS_OAUTH_CLIENT_ID")
	s.must(err)
	s.must(s.Lab.CRI().StopPod(s.ctx, pod.ID))
	s.must(s.Lab.CRI().RemovePod(s.ctx, pod.ID))
	s.must(s.AwaitLog(s.ctx, `no longer has the profile`, "put the keys prod.TS_"))
	if got := tags(); len(got) != 2 {
		t.Errorf("the devices are %v, want both", got)
	}

	for name, text := range profile {
		put(name, text)
	}
	s.must(s.RemovePod(s.ctx, other))
	s.must(s.AwaitTraces(s.ctx, scene.Traces{}))
}
