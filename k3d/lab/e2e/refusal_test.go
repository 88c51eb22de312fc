// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab"
	"tailscale-nri/k3d/lab/control"
	"tailscale-nri/k3d/lab/scene"
)

// TestBadInput: what a user gets wrong comes back from CRI with key, value and remedy, and leaves nothing behind. The
// same pod, put right, runs.
func TestBadInput(t *testing.T) {
	t.Parallel()
	s := openServed(t, "input")
	const enabled, hostname, tags = "tailscale.com/enabled", "tailscale.com/hostname", "tailscale.com/tags"
	const prefix, ephemeral, exitNode = "tailscale.com/", "tailscale.com/ephemeral", "tailscale.com/exit-node"
	for _, c := range []struct {
		name string
		spec lab.PodSpec
		want []string
	}{
		{"enabled", lab.PodSpec{Annotations: map[string]string{enabled: "yes please"}}, []string{enabled, "yes please", `say "true"`}},
		{"tag", lab.PodSpec{Annotations: scene.OptIn(tags, "tag:db,web")}, []string{tags, "web", "write tags as tag:name"}},
		{"tag-of-others", lab.PodSpec{Annotations: scene.OptIn(tags, "tag:other")}, []string{tags, "tag:other", "the default policy", "TS_POLICY_FILE"}},
		{"hostname", lab.PodSpec{Annotations: scene.OptIn(hostname, "my_host")}, []string{hostname, "my_host", "use small letters, digits and dashes"}},
		{"hostname-long", lab.PodSpec{Annotations: scene.OptIn(hostname, strings.Repeat("a", 64))}, []string{hostname, "aaaa", "at most 63"}},
		{"typo", lab.PodSpec{Annotations: map[string]string{"tailscale.com/enable": "true"}}, []string{"tailscale.com/enable", "true", "write " + enabled}},
		{"typo-next-to", lab.PodSpec{Annotations: scene.OptIn("tailscale.com/hostnme", "db")}, []string{"tailscale.com/hostnme", "db", "write " + hostname}},
		{"dns", lab.PodSpec{Annotations: scene.OptIn(prefix+"dns", "1")}, []string{prefix + "dns", `"1"`, `say "true"`}},
		{"accept-routes", lab.PodSpec{Annotations: scene.OptIn(prefix+"accept-routes", "10.0.0.0/8")}, []string{prefix + "accept-routes", "10.0.0.0/8", `say "true"`}},
		{"exit-node", lab.PodSpec{Annotations: scene.OptIn(exitNode, "auto:any")}, []string{exitNode, "auto:any", "write the name of a device"}},
		{"advertise-routes", lab.PodSpec{Annotations: scene.OptIn(prefix+"advertise-routes", "10.43.0.1")}, []string{prefix + "advertise-routes", "10.43.0.1", "write such as 10.43.0.0/16"}},
		{"advertise-exit-node", lab.PodSpec{Annotations: scene.OptIn(prefix+"advertise-exit-node", "true")}, []string{prefix + "advertise-exit-node", `"true"`, "the default policy", "allow.features"}},
		{"shields-up", lab.PodSpec{Annotations: scene.OptIn(prefix+"shields-up", "on")}, []string{prefix + "shields-up", `"on"`, `say "true"`}},
		{"socket", lab.PodSpec{Annotations: scene.OptIn(socketKey, "yes")}, []string{socketKey, `"yes"`, `say "true"`}},
		{"wait", lab.PodSpec{Annotations: scene.OptIn(waitKey, "30")}, []string{waitKey, `"30"`, "write a duration such as 30s"}},
		{"wait-policy", lab.PodSpec{Annotations: scene.OptIn(policyKey, "start")}, []string{policyKey, `"start"`, "add " + waitKey}},
		{"ephemeral", lab.PodSpec{Annotations: scene.OptIn(ephemeral, "yes")}, []string{ephemeral, `"yes"`, `say "true"`}},
		{"identity", lab.PodSpec{Annotations: scene.OptIn(prefix+"identity", "statefulset")}, []string{prefix + "identity", `"statefulset"`, `say "workload"`}},
		{"profile", lab.PodSpec{Annotations: scene.OptIn(prefix+"profile", "prod")}, []string{prefix + "profile", `"prod"`, "the default policy", "allow.profiles"}},
		{"host-network", lab.PodSpec{HostNetwork: true, Annotations: scene.OptIn()}, []string{enabled, "hostNetwork: true", "remove the annotation"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.spec.Name = c.name
			refusal, err := s.Refused(s.ctx, c.spec, append(c.want, "default/"+c.name)...)
			if err != nil {
				t.Fatal(err)
			}
			t.Log(refusal)
		})
	}
	pod := s.run("enabled") // put right
	s.must(s.AwaitRunning(s.ctx, pod))
}

// TestRefusedByTailnet: the pod runs, its node is pending for a reason that is logged once, and comes up without a
// restart of anything once the tailnet has changed its mind.
func TestRefusedByTailnet(t *testing.T) {
	t.Parallel()
	s := openServed(t, "refused")
	for _, c := range []struct {
		name   string
		fault  control.Fault
		reason string
	}{
		{"secret", control.Fault{Path: "/api/v2/oauth/token", Status: 401, Message: "API token invalid"}, "TS_OAUTH_CLIENT_SECRET"},
		{"tag", control.Fault{Path: "/api/v2/tailnet", Status: 400, Message: "requested tags [tag:k8s-pod] are invalid or not permitted"}, "tagOwners"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.must(s.plane.AddFault(s.ctx, c.fault))
			_, err := s.KillAndStart(s.ctx) // or an access token, and keys, lie ready
			s.must(err)
			before := s.calls()
			pod := s.run(c.name)
			s.awaitPending(pod, c.reason)
			s.awaitCalls(before + 3) // it has been tried again
			if out := s.status(); !strings.Contains(out, c.reason) || !strings.Contains(out, "Pending") {
				t.Errorf("tailscale-nri status says\n%s", out)
			}
			lines, err := s.LogLines("default/"+c.name, "not in the tailnet yet")
			if err != nil || len(lines) != 1 || !strings.Contains(lines[0], c.reason) {
				t.Errorf("the log has %q: %v", lines, err)
			}
			s.must(s.plane.ClearFaults(s.ctx))
			s.must(s.AwaitRunning(s.ctx, pod))
			s.must(s.RemovePod(s.ctx, pod))
		})
	}
	s.must(s.AwaitTraces(s.ctx, scene.Traces{}))
}

// TestWrongSecret has the variable itself wrong: the plugin with the right one serves the pod that is there.
func TestWrongSecret(t *testing.T) {
	t.Parallel()
	s := openServed(t, "secret", "TS_OAUTH_CLIENT_SECRET=wrong-one")
	pod := s.run("web")
	s.awaitPending(pod, "refuses the OAuth client")
	if leaks, err := s.LogLines("wrong-one"); err != nil || len(leaks) > 0 {
		t.Errorf("the secret is in the log: %q, %v", leaks, err)
	}
	_, err := s.KillAndStart(s.ctx, pod)
	s.must(err)
}

// TestUsedKey leads into the tailnet with a static key that works once: the second pod waits until the plugin has
// another.
func TestUsedKey(t *testing.T) {
	t.Parallel()
	s := open(t, "key")
	static := func() []string {
		key, err := s.plane.NewKey(s.ctx, "tag:k8s-pod")
		s.must(err)
		return []string{"TS_OAUTH_CLIENT_ID=", "TS_OAUTH_CLIENT_SECRET=", "TS_TAGS=", "TS_AUTHKEY=" + key}
	}
	s.start(static()...)
	s.must(s.Registered(s.ctx))
	first := s.run("first")
	s.must(s.AwaitRunning(s.ctx, first))
	second := s.run("second")
	s.awaitPending(second, "key")
	t.Log(s.status())
	s.must(s.Plugin.End(s.ctx, unix.SIGTERM))
	s.start(static()...)
	s.must(s.AwaitRunning(s.ctx, second))
	s.must(s.AwaitRunning(s.ctx, first))
}

// TestNoCredentials: one line, and the end.
func TestNoCredentials(t *testing.T) {
	t.Parallel()
	s := open(t, "nocred")
	s.start("TS_OAUTH_CLIENT_ID=", "TS_OAUTH_CLIENT_SECRET=")
	err := s.Plugin.Wait(s.ctx)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("expected exit status 1, saw %v", err)
	}
	lines, err := s.LogLines()
	s.must(err)
	if len(lines) != 1 || !strings.Contains(lines[0], "TS_OAUTH_CLIENT_ID") || !strings.Contains(lines[0], "TS_AUTHKEY") {
		t.Errorf("expected one line that names the variables, saw %q", lines)
	}
}

// TestNoSocket: one line that says how to have NRI; when it is there, all works.
func TestNoSocket(t *testing.T) {
	t.Parallel()
	s := open(t, "nosock")
	s.must(s.Lab.Containerd().Stop(s.ctx, unix.SIGTERM))
	s.start()
	s.must(s.AwaitLog(s.ctx, "nothing listens on the NRI socket", "config.toml.tmpl"))
	s.must(s.Lab.Containerd().Start(s.ctx))
	s.must(s.Registered(s.ctx))
	lines, err := s.LogLines("level=WARN")
	if err != nil || len(lines) != 1 {
		t.Errorf("expected one warning, saw %q: %v", lines, err)
	}
	s.must(s.AwaitRunning(s.ctx, s.run("web")))
}
