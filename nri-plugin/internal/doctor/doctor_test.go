// SPDX-License-Identifier: BSD-3-Clause

package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http/httpproxy"

	"tailscale-nri/k3d/lab/control"
	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

// testHost is this one, with a configuration of its own, a root without files, and
// no plugin.
func testHost(t *testing.T, vars ...string) *Host {
	t.Helper()
	dir := t.TempDir()
	h := NewHost(plugintest.Environment(assigned(append([]string{
		settings.StateDir + "=" + filepath.Join(dir, "state"), settings.StatusSocket + "=" + filepath.Join(dir, "status.sock"),
		settings.NRISocket + "=" + filepath.Join(dir, "nri.sock"), settings.AuthKey + "=tskey-auth-" + plugintest.Secret,
	}, vars...))), 0)
	if h.cfgErr != nil {
		t.Fatal(h.cfgErr)
	}
	t.Cleanup(func() { config.UseProxy(httpproxy.Config{}) }) // which is the process's
	h.root, h.patience, h.secondLook = t.TempDir(), plugintest.Patience, 0
	return h
}

// assigned are "KEY=VALUE"s, of which the last of a key counts.
func assigned(list []string) map[string]string {
	vars := make(map[string]string)
	for _, v := range list {
		key, value, _ := strings.Cut(v, "=")
		vars[key] = value
	}
	return vars
}

// put writes a file below the host's root.
func (h *Host) put(t *testing.T, path, text string) {
	t.Helper()
	file := h.path(path)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// expect wants a finding with that result and remedy, whose text holds seen. No
// finding shows a secret.
func expect(t *testing.T, findings []Finding, result, seen, remedy string) {
	t.Helper()
	for _, f := range findings {
		if strings.Contains(f.Seen+f.Remedy, plugintest.Secret) {
			t.Errorf("a secret is shown: %+v", f)
		}
	}
	if !slices.ContainsFunc(findings, func(f Finding) bool {
		return f.Result == result && strings.Contains(f.Seen, seen) && f.Remedy == remedy
	}) {
		t.Errorf("want %s, %q, remedy %q; got %+v", result, seen, remedy, findings)
	}
}

// look runs one check.
func look(t *testing.T, h *Host, c func(context.Context, *Host) []Finding) []Finding {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), plugintest.Patience)
	defer cancel()
	return c(ctx, h)
}

// TestExamine: the order is the list's whatever the checks take, and one that hangs
// holds up nobody.
func TestExamine(t *testing.T) {
	h := &Host{patience: 50 * time.Millisecond}
	release := make(chan struct{})
	defer close(release)
	first := make(chan struct{})
	got := examine(t.Context(), h, []check{
		{"hangs", func(context.Context, *Host) []Finding { <-release; return nil }},
		{"late", func(ctx context.Context, _ *Host) []Finding {
			<-first
			<-ctx.Done()
			return []Finding{fail("too late", remedyDERP)}
		}},
		{"early", func(context.Context, *Host) []Finding {
			close(first)
			return []Finding{fine("two\n lines"), {Check: "other", Result: ResultWarn}}
		}},
	})
	want := []Finding{
		{"hangs", ResultUnknown, "no answer within 50ms", ""}, {"late", ResultFail, "too late", remedyDERP},
		{"early", ResultOK, "two lines", ""}, {"other", ResultWarn, "", ""},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
}

// of are the findings of one check.
func of(findings []Finding, name string) []Finding {
	return slices.DeleteFunc(slices.Clone(findings), func(f Finding) bool { return f.Check != name })
}

// TestDoctorThatCannotLook ends with 2.
func TestDoctorThatCannotLook(t *testing.T) {
	var broken brokenWriter
	if err := Run(t.Context(), testHost(t, settings.LoginServer+"=http://127.0.0.1:1"), false, broken); err == nil || !errors.As(err, new(statussocket.CannotAsk)) {
		t.Errorf("a table that nobody reads: %v", err)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("broken") }

func TestPrintFindings(t *testing.T) {
	var out strings.Builder
	err := printFindings(&out, []Finding{{"MTU", ResultOK, "1500", ""}, {"UDP", ResultWarn, "none", "let it pass"}})
	want := "CHECK  RESULT  SEEN, AND REMEDY\nMTU    ok      1500\nUDP    warn    none\n               remedy: let it pass\n"
	if err != nil || out.String() != want {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// withPlane is a host that comes in over OAuth.
func withPlane(t *testing.T, s *control.Server, more ...string) *Host {
	t.Helper()
	return testHost(t, append(append(plugintest.PlaneVars(s), settings.AuthKey+"="), more...)...)
}
