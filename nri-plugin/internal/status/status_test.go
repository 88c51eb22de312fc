// SPDX-License-Identifier: BSD-3-Clause

package status

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"sigs.k8s.io/yaml"
)

var now = time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)

func ago(d time.Duration) time.Time { return now.Add(-d) }

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// example has a node in each state, and on each way.
func example() Report {
	return Report{
		APIVersion: APIVersion, Host: "n1", Version: "v1", Ready: true, Role: Serving,
		Nodes: []Node{
			{
				Namespace: "default", Pod: "web", UID: "u1", SandboxID: "s1", State: Running,
				Hostname: "web", DNSName: "web-1.lab.ts.net", Addresses: addrs("100.64.0.1", "fd7a:115c:a1e0::1"),
				Tags: []string{"tag:k8s-pod", "tag:web"}, NodeID: "nAb", LoginServer: "https://controlplane.tailscale.com",
				Features: map[string]string{"dns": "true", "exit-node": "gate"},
				Since:    ago(26 * time.Hour), AttachedAt: ago(26 * time.Hour), ReadyIn: 1.2345678,
				ControlConnected: true, KeyExpiry: now.Add(240 * time.Hour),
				Path: DERP, DERP: "nyc", PathDERP: "fra", LastHandshake: ago(95 * time.Second), BytesIn: 1023, BytesOut: 5 << 20,
				Peers: 12, Sessions: 2, SessionPeers: []Peer{
					{Name: "laptop.lab.ts.net", Address: netip.MustParseAddr("100.64.0.9"), Path: DERP, DERP: "fra",
						LastWrite: ago(time.Second), LastHandshake: ago(95 * time.Second), BytesIn: 1000, BytesOut: 5 << 20},
					{Name: "db.lab.ts.net", LastHandshake: ago(72 * time.Hour), BytesIn: 23},
				},
			},
			{
				Namespace: "default", Pod: "api", State: Running, Hostname: "api", DNSName: "api.lab.ts.net",
				Addresses: addrs("100.64.0.2"), Since: ago(5 * time.Minute), ReadyIn: 0.5, Reason: "the control plane has not been reached",
				LoginServer: "https://hs", Profile: "lab",
			},
			{Namespace: "default", Pod: "near", State: Running, Hostname: "near", Path: Local, BytesIn: 2048, Since: ago(time.Hour)},
			{Namespace: "default", Pod: "gone", State: Leaving, Hostname: "gone", Since: ago(time.Second)},
			{Namespace: "a", Pod: "job", State: NoNode, Reason: "runs without a tailnet node: bad\n\x1b[31mtag\ttoo", Since: ago(3 * time.Hour)},
			{Namespace: "default", Pod: "old", State: Pending, Hostname: "old", Reason: "starting"},
		},
	}
}

func printed(t *testing.T, format string, reports ...Report) string {
	t.Helper()
	var out strings.Builder
	if err := Print(&out, reports, Options{Format: format, Now: now}); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// same compares tables, ends of lines apart.
func same(t *testing.T, got, want string) {
	t.Helper()
	clip := func(s string) string {
		var lines []string
		for line := range strings.Lines(strings.TrimPrefix(s, "\n")) {
			lines = append(lines, strings.TrimRight(line, " \n"))
		}
		return strings.Join(lines, "\n")
	}
	if clip(got) != clip(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestTable(t *testing.T) {
	same(t, printed(t, "", example()), `
POD           STATE    NAME                ADDRESSES                     SINCE  HANDSHAKE  PATH      IN      OUT     REASON
a/job         NoNode   -                   -                             3h     -          -         -       -       runs without a tailnet node: bad  [31mtag too
default/api   Running  api                 100.64.0.2                    5m     -          idle      0       0       the control plane has not been reached
default/gone  Leaving  gone                -                             1s     -          -         -       -       -
default/near  Running  near                -                             60m    -          local     2.0KiB  0       -
default/old   Pending  old                 -                             -      -          -         -       -       starting
default/web   Running  web-1 (asked: web)  100.64.0.1,fd7a:115c:a1e0::1  26h    95s        derp fra  1023    5.0MiB  -
`)
}

func TestWide(t *testing.T) {
	r := example()
	r.Nodes = r.Nodes[:2]
	same(t, printed(t, Wide, r), `
POD          STATE    NAME                ADDRESSES                     SINCE  HANDSHAKE  PATH      IN    OUT     TAGS                 KEY EXPIRY  NODE ID  PEERS  SESSIONS  CONTROL    READY IN  FEATURES            LOGIN SERVER                        REASON
default/api  Running  api                 100.64.0.2                    5m     -          idle      0     0       -                    -           -        0      0         away       500ms     -                   https://hs (profile lab)            the control plane has not been reached
default/web  Running  web-1 (asked: web)  100.64.0.1,fd7a:115c:a1e0::1  26h    95s        derp fra  1023  5.0MiB  tag:k8s-pod,tag:web  2031-05-16  nAb      12     2         connected  1.235s    dns exit-node=gate  https://controlplane.tailscale.com  -

POD          PEER               PATH      ENDPOINT  HANDSHAKE  IN    OUT
default/web  laptop.lab.ts.net  derp fra  -         95s        1000  5.0MiB
default/web  db.lab.ts.net      -         -         3d         23    0
`)
}

func TestTableOfSeveralHosts(t *testing.T) {
	a, b := example(), Report{Host: "n2", Ready: false, Message: "not ready: starting", Warnings: []string{"a remark"}}
	a.Nodes = a.Nodes[2:3]
	same(t, printed(t, Table, a, b, Report{Host: "n3", Error: "no agent runs there"}), `
HOST  POD           STATE    NAME  ADDRESSES  SINCE  HANDSHAKE  PATH   IN      OUT  REASON
n1    default/near  Running  near  -          60m    -          local  2.0KiB  0    -

n2: not ready: starting
n2: a remark
n3: no agent runs there
`)
	same(t, printed(t, Table, Report{Ready: true}), `
POD  STATE  NAME  ADDRESSES  SINCE  HANDSHAKE  PATH  IN  OUT  REASON

no pod here that has a tailnet node, or asks for one
`)
}

// TestHostile: names and reasons that others chose move no terminal's cursor, in any
// format, and values keep them.
func TestHostile(t *testing.T) {
	const evil = "a\x1b[2J\u009b31m\x7f\r\n\b\u202e\ufffez"
	r := Report{APIVersion: APIVersion, Host: evil, Message: evil, Error: evil, Warnings: []string{evil}, Nodes: []Node{{
		Namespace: evil, Pod: evil, State: evil, Reason: evil, Hostname: evil, DNSName: evil, Tags: []string{evil}, NodeID: evil,
		LoginServer: evil, Profile: evil, Features: map[string]string{evil: evil}, Path: evil, PathDERP: evil,
		SessionPeers: []Peer{{Name: evil, Path: evil, Endpoint: evil, DERP: evil}},
	}}}
	for _, format := range Formats {
		text := printed(t, format, r, r)
		for _, c := range text {
			if c != '\n' && !unicode.IsPrint(c) && (format != YAML || unicode.IsControl(c)) {
				t.Errorf("%s has %U", format, c)
				break
			}
		}
		if format == JSON || format == YAML {
			var got struct {
				APIVersion string
				Hosts      []Report
			}
			if err := yaml.UnmarshalStrict([]byte(text), &got); err != nil || len(got.Hosts) != 2 || !reflect.DeepEqual(got.Hosts[1], r) {
				t.Errorf("%s: %v: got %+v", format, err, got)
			}
		}
	}
}

// TestValues: a report survives JSON and YAML, and several hosts are a list.
func TestValues(t *testing.T) {
	for format, unmarshal := range map[string]func([]byte, any) error{
		JSON: json.Unmarshal, YAML: func(b []byte, v any) error { return yaml.UnmarshalStrict(b, v) },
	} {
		text := printed(t, format, example())
		var got Report
		if err := unmarshal([]byte(text), &got); err != nil || !reflect.DeepEqual(got, example()) {
			t.Errorf("%s: %v: got\n%+v\nof\n%s", format, err, got, text)
		}
		var all struct {
			APIVersion string
			Hosts      []Report
		}
		text = printed(t, format, example(), Report{Host: "n2"})
		if err := unmarshal([]byte(text), &all); err != nil || all.APIVersion != APIVersion || len(all.Hosts) != 2 || all.Hosts[1].Host != "n2" {
			t.Errorf("%s of two hosts: %v\n%s", format, err, text)
		}
	}
	var one strings.Builder
	if err := Print(&one, []Report{{Host: "n1"}}, Options{Format: JSON, Hosts: true}); err != nil || !strings.Contains(one.String(), `"hosts": [`) {
		t.Errorf("one of a cluster's hosts: %v\n%s", err, &one)
	}
	if err := Print(nil, nil, Options{Format: "xml"}); err == nil || !strings.Contains(err.Error(), strings.Join(Formats, ", ")) {
		t.Errorf("xml: %v", err)
	}
}

func TestDecode(t *testing.T) {
	data, err := json.Marshal(example())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Decode(data); err != nil || !reflect.DeepEqual(got, example()) {
		t.Errorf("got %+v, %v", got, err)
	}
	for bad, want := range map[string]string{
		`[]`: "reading", ``: "reading", `{"apiVersion":"tailscale-nri/v1","nodes":7}`: "reading",
		`{}`: `apiVersion ""`, `{"apiVersion":"tailscale-nri/v9","nodes":{"a":1}}`: `apiVersion "tailscale-nri/v9"`,
	} {
		if _, err := Decode([]byte(bad)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", bad, err, want)
		}
	}
	if got, err := Decode([]byte(`{"apiVersion":"tailscale-nri/v1","ready":true,"later":{"a":1}}`)); err != nil || !got.Ready {
		t.Errorf("a field more: %+v, %v", got, err)
	}
}

func TestExitCode(t *testing.T) {
	good := Report{Ready: true, Nodes: []Node{{State: Running}}}
	bad := func(state string) Report {
		return Report{Ready: true, Nodes: []Node{{State: Running}, {State: state, Namespace: "a", Pod: "b"}}}
	}
	keeps, again := bad(Leaving), bad(Leaving)
	keeps.Nodes[1].Reason = "the OAuth client may not delete devices"
	again.Nodes = append(again.Nodes, Node{State: Running, Namespace: "a", Pod: "b"})
	for _, tt := range []struct {
		reports []Report
		want    int
	}{
		{nil, ExitOK},
		{[]Report{{Ready: true}, good}, ExitOK},
		{[]Report{good, {}}, ExitTrouble},
		{[]Report{bad(Pending), good}, ExitTrouble},
		{[]Report{bad(NoNode)}, ExitTrouble},
		{[]Report{bad("Unknown")}, ExitTrouble},
		{[]Report{bad(Leaving), bad(Stopped)}, ExitOK},
		{[]Report{keeps}, ExitTrouble},
		{[]Report{{Error: "away"}, bad(Pending)}, ExitNotAsked},
		{[]Report{bad(Stopped), {Error: "away"}}, ExitNotAsked},
	} {
		if got := ExitCode(tt.reports); got != tt.want {
			t.Errorf("%+v: %d, want %d", tt.reports, got, tt.want)
		}
	}
	for want, reports := range map[int][]Report{ExitTrouble: {bad(Stopped)}, ExitOK: {again}, ExitNotAsked: {{Error: "away"}}} {
		if got := ExitCode(reports, "a/b"); got != want {
			t.Errorf("%+v asked for by name: %d, want %d", reports, got, want)
		}
	}
}

func TestSelect(t *testing.T) {
	a, b := example(), Report{Host: "n2", Nodes: []Node{{Namespace: "team", Pod: "web"}}}
	got, missing := Select([]Report{a, b}, []string{"default/web", "team/web", "team/api"})
	if len(got) != 2 || len(got[0].Nodes) != 1 || got[0].Nodes[0].Pod != "web" || len(got[1].Nodes) != 1 || !slices.Equal(missing, []string{"team/api"}) {
		t.Errorf("got %+v, missing %q", got, missing)
	}
	if !reflect.DeepEqual(a, example()) {
		t.Error("the report that was given has changed")
	}
	if got, missing := Select([]Report{a}, nil); len(got[0].Nodes) != len(a.Nodes) || missing != nil {
		t.Errorf("all: %+v, %q", got, missing)
	}
	for arg, want := range map[string]string{"web": "default/web", "a/web": "a/web", "": "", "/": "", "a/": "", "/b": "", "a/b/c": "", "a b": ""} {
		if got, err := PodName(arg); got != want || (err == nil) != (want != "") {
			t.Errorf("%q is %q, %v", arg, got, err)
		}
	}
}

func TestChanged(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  func(*Report)
		changed bool
	}{
		{"nothing", func(*Report) {}, false},
		{"bytes", func(r *Report) {
			r.Nodes[0].BytesIn++
			r.Nodes[0].LocalBytesOut++
			r.Nodes[0].BytesOut++
			r.Nodes[0].SessionPeers[0].BytesIn++
		}, false},
		{"a handshake", func(r *Report) { r.Nodes[0].LastHandshake = now }, false},
		{"a state", func(r *Report) { r.Nodes[0].State = Pending }, true},
		{"a path", func(r *Report) { r.Nodes[0].Path = Direct }, true},
		{"a reason", func(r *Report) { r.Nodes[0].Reason = "x" }, true},
		{"the host", func(r *Report) { r.Message = "x" }, true},
		{"a pod less", func(r *Report) { r.Nodes = r.Nodes[1:] }, true},
	} {
		is := example()
		tt.change(&is)
		if got := Changed([]Report{example()}, []Report{is}); got != tt.changed {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func TestUnits(t *testing.T) {
	for bytes, want := range map[uint64]string{0: "0", 1023: "1023", 1024: "1.0KiB", 1536: "1.5KiB", 1<<20 - 1: "1.0MiB", 3 << 30: "3.0GiB", 1<<64 - 1: "16.0EiB"} {
		if got := bytesText(bytes); got != want {
			t.Errorf("%d bytes are %s, want %s", bytes, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Second: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 3 * time.Hour: "3h", 48 * time.Hour: "2d"} {
		if got := age(ago(d), now); got != want {
			t.Errorf("%v is %s, want %s", d, got, want)
		}
	}
}
