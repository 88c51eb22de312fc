// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"bytes"
	"fmt"
	"log/slog"
	"os/exec"
	"strings"
	"testing"
	"time"

	"tailscale-nri/k3d/lab/control"
)

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		value string
		want  time.Duration
		ok    bool
	}{
		{"0", 0, true},
		{"120", 2 * time.Minute, true},
		{"Mon, 23 Nov 2026 12:01:00 GMT", time.Minute, true},
		{"Mon, 23 Nov 2026 11:00:00 GMT", 0, true},
		{"", 0, false},
		{"-5", 0, false},
		{"soon", 0, false},
		{"99999999999999999999", 0, false},
	} {
		if got, ok := retryAfter(test.value, now); got != test.want || ok != test.ok {
			t.Errorf("retryAfter(%q) = %v, %v; want %v, %v", test.value, got, ok, test.want, test.ok)
		}
	}
}

func TestBackoff(t *testing.T) {
	c := newCalls(OAuthConfig{Calls: CallLimits{Backoff: time.Second, MaxWait: 5 * time.Second}})
	for attempt, want := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 3: 4 * time.Second, 4: 5 * time.Second, 100: 5 * time.Second} {
		seen := map[time.Duration]bool{}
		for range 20 {
			got := c.backoff(attempt)
			if got < want/2 || got > want {
				t.Errorf("back-off %d is %v, want %v to %v", attempt, got, want/2, want)
			}
			seen[got] = true
		}
		if len(seen) < 2 {
			t.Errorf("back-off %d has no jitter", attempt)
		}
	}
}

// TestRequired: what neither way into a tailnet can do without. What it is given, the
// caller has checked.
func TestRequired(t *testing.T) {
	good := OAuthConfig{ClientID: clientID, ClientSecret: clientSecret}
	for _, test := range []struct {
		name   string
		change func(*OAuthConfig)
		want   string
	}{
		{"no ID", func(c *OAuthConfig) { c.ClientID = "" }, "ClientID"},
		{"no secret", func(c *OAuthConfig) { c.ClientSecret = "" }, "ClientSecret"},
		{"a secret and a token", func(c *OAuthConfig) { c.IDTokenFile = "/token" }, "IDTokenFile"},
		{"a token without ID", func(c *OAuthConfig) { *c = OAuthConfig{IDTokenFile: "/token"} }, "ClientID"},
	} {
		cfg := good
		test.change(&cfg)
		_, err := NewOAuth(cfg)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v does not speak of %q", test.name, err, test.want)
		} else if strings.Contains(err.Error(), clientSecret) {
			t.Errorf("%s: a secret is in the error %q", test.name, err)
		}
	}
	if _, err := NewOAuth(good); err != nil {
		t.Errorf("a good configuration: %v", err)
	}
	if _, err := NewOAuth(OAuthConfig{ClientID: clientID, IDTokenFile: "/not/there/yet"}); err != nil {
		t.Errorf("workload identity: %v", err)
	}
	if _, err := NewStatic(StaticConfig{}); err == nil || !strings.Contains(err.Error(), "AuthKey") {
		t.Errorf("without a key: %v", err)
	}
}

func TestStatic(t *testing.T) {
	s, err := NewStatic(StaticConfig{AuthKey: "hskey-x", ControlURL: "https://headscale.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	if k, err := s.NewAuthKey(testContext(t), web); k != "hskey-x" || err != nil {
		t.Errorf("key %q, %v", k, err)
	}
	ephemeral := web
	ephemeral.Ephemeral = true
	if k, err := s.NewAuthKey(testContext(t), ephemeral); k != "" || err == nil || !strings.Contains(err.Error(), "Node.Ephemeral") {
		t.Errorf("for an ephemeral node: %q, %v", k, err)
	}
	if s.ControlURL() != "https://headscale.example.com" {
		t.Errorf("login server %q", s.ControlURL())
	}
}

// TestNoSecretInLogs logs everything that holds a secret, in every way.
func TestNoSecretInLogs(t *testing.T) {
	s := newAPI(t)
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	cfg := OAuthConfig{ClientID: clientID, ClientSecret: clientSecret}
	o := newOAuth(t, s, func(c *OAuthConfig) { c.Logger = log })
	s.AddFault(control.Fault{Status: 500, Times: 2})
	if _, err := o.NewAuthKey(testContext(t), web); err != nil {
		t.Fatal(err)
	}
	static, err := NewStatic(StaticConfig{AuthKey: "tskey-auth-x"})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []any{cfg, &cfg, o, static, StaticConfig{AuthKey: "tskey-auth-x"}} {
		log.Info("value", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("value", "v", v)
		fmt.Fprintf(&out, "%v %+v\n", v, v)
	}
	if !strings.Contains(out.String(), "calling the API again") {
		t.Error("the retries are not logged")
	}
	if strings.Contains(out.String(), "tskey-") || strings.Contains(out.String(), "SECRET") {
		t.Errorf("a secret is in the log:\n%s", out.String())
	}
}

// TestLayers keeps the package apart from what a node needs: it must be
// possible to use it without a kernel, a container runtime or a backend.
func TestLayers(t *testing.T) {
	deps, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, banned := range []string{"github.com/vishvananda/", "github.com/containerd/", "k8s.io/", "tailscale.com/ipn/ipnlocal", "tailscale.com/wgengine"} {
		for dep := range strings.Lines(string(deps)) {
			if strings.HasPrefix(dep, banned) {
				t.Errorf("the package imports %s", strings.TrimSpace(dep))
			}
		}
	}
}
