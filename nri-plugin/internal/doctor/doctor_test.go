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

// testMachine is this one, with a configuration of its own, a root without files, and
// no plugin.
func testMachine(t *testing.T, vars ...string) *Machine {
	t.Helper()
	dir := t.TempDir()
	m := NewMachine(plugintest.Environment(assigned(append([]string{
		settings.StateDir + "=" + filepath.Join(dir, "state"), settings.StatusSocket + "=" + filepath.Join(dir, "status.sock"),
		settings.NRISocket + "=" + filepath.Join(dir, "nri.sock"), settings.AuthKey + "=tskey-auth-" + plugintest.Secret,
	}, vars...))), 0)
	if m.cfgErr != nil {
		t.Fatal(m.cfgErr)
	}
	t.Cleanup(func() { config.UseProxy(httpproxy.Config{}) }) // which is the process's
	m.root, m.patience, m.secondLook = t.TempDir(), plugintest.Patience, 0
	return m
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
func (m *Machine) put(t *testing.T, path, text string) {
	t.Helper()
	file := m.path(path)
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
func look(t *testing.T, m *Machine, c func(context.Context, *Machine) []Finding) []Finding {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), plugintest.Patience)
	defer cancel()
	return c(ctx, m)
}

// TestExamine: the order is the list's whatever the checks take, and one that hangs
// holds up nobody.
func TestExamine(t *testing.T) {
	m := &Machine{patience: 50 * time.Millisecond}
	release := make(chan struct{})
	defer close(release)
	first := make(chan struct{})
	got := examine(t.Context(), m, []check{
		{"hangs", func(context.Context, *Machine) []Finding { <-release; return nil }},
		{"late", func(ctx context.Context, _ *Machine) []Finding {
			<-first
			<-ctx.Done()
			return []Finding{fail("too late", RemedyDERP)}
		}},
		{"early", func(context.Context, *Machine) []Finding {
			close(first)
			return []Finding{fine("two\n lines"), {Check: "other", Result: ResultWarn}}
		}},
	})
	want := []Finding{
		{"hangs", ResultUnknown, "no answer within 50ms", ""}, {"late", ResultFail, "too late", RemedyDERP},
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
	if err := Run(t.Context(), testMachine(t, settings.LoginServer+"=http://127.0.0.1:1"), false, broken); err == nil || !errors.As(err, new(statussocket.CannotAsk)) {
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
func withPlane(t *testing.T, s *control.Server, more ...string) *Machine {
	t.Helper()
	return testMachine(t, append(append(plugintest.PlaneVars(s), settings.AuthKey+"="), more...)...)
}
