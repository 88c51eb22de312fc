// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tailscale.com/tailcfg"

	"tailscale-nri/k3d/lab/control"
)

// IP protocol numbers.
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58

	protoNobodys = 253 // RFC 3692
)

// ports are single ports of a rule.
func ports(numbers ...uint16) (out []tailcfg.PortRange) {
	for _, n := range numbers {
		out = append(out, tailcfg.PortRange{First: n, Last: n})
	}
	return out
}

// rule is a rule from tag to tag.
func rule(src, dst string, change ...func(*control.Rule)) control.Rule {
	r := control.Rule{Src: strings.Fields(src), Dst: strings.Fields(dst)}
	for _, f := range change {
		f(&r)
	}
	return r
}

func on(p []tailcfg.PortRange) func(*control.Rule) { return func(r *control.Rule) { r.Ports = p } }
func by(p ...int) func(*control.Rule)              { return func(r *control.Rule) { r.Proto = p } }

// ICMP is let in where any port of the address is open to its sender, whatever
// protocol the rule names (wgengine/filter, matchIPsOnly).
const (
	every = "tcp4:80 tcp4:81 udp4:53 udp4:54 ping4 tcp6:80 tcp6:81 udp6:53 udp6:54 ping6"
	pings = "ping4 ping6"
	none  = ""
)

// aclRows are policies, with what then passes from a to b and from b to a.
var aclRows = []struct {
	name   string
	rules  []control.Rule
	ab, ba string
}{
	{"allow all", []control.Rule{control.AllowAll}, every, every},
	{"deny all", nil, none, none},
	{"allow all again", []control.Rule{control.AllowAll}, every, every},
	{"one direction", []control.Rule{rule("tag:a", "tag:b")}, every, none},
	{"the other direction", []control.Rule{rule("tag:b", "tag:a")}, none, every},
	{"a rule more", []control.Rule{rule("tag:b", "tag:a"), rule("tag:a", "tag:b")}, every, every},
	{"TCP 80 only", []control.Rule{rule("tag:a", "tag:b", by(protoTCP), on(ports(80)))}, "tcp4:80 tcp6:80 " + pings, none},
	{"TCP 81 only", []control.Rule{rule("tag:a", "tag:b", by(protoTCP), on(ports(81)))}, "tcp4:81 tcp6:81 " + pings, none},
	{"UDP 53 only", []control.Rule{rule("tag:a", "tag:b", by(protoUDP), on(ports(53)))}, "udp4:53 udp6:53 " + pings, none},
	{"TCP only", []control.Rule{rule("*", "*", by(protoTCP))}, "tcp4:80 tcp4:81 tcp6:80 tcp6:81 " + pings, "tcp4:80 tcp4:81 tcp6:80 tcp6:81 " + pings},
	{"ICMP only", []control.Rule{rule("*", "tag:b", by(protoICMP, protoICMPv6))}, pings, none},
	{"a protocol that nobody speaks", []control.Rule{rule("*", "tag:b", by(47))}, pings, none},
	{"a range of ports", []control.Rule{rule("*", "*", on([]tailcfg.PortRange{{First: 54, Last: 80}}))}, "tcp4:80 udp4:54 tcp6:80 udp6:54 " + pings, "tcp4:80 udp4:54 tcp6:80 udp6:54 " + pings},
	{"two ports", []control.Rule{rule("*", "tag:a", on(ports(53, 81)))}, none, "tcp4:81 udp4:53 tcp6:81 udp6:53 " + pings},
	{"IPv4 only", []control.Rule{rule("*", "100.64.0.0/10")}, "tcp4:80 tcp4:81 udp4:53 udp4:54 ping4", "tcp4:80 tcp4:81 udp4:53 udp4:54 ping4"},
	{"IPv6 only", []control.Rule{rule("fd7a:115c:a1e0::/48", "*")}, "tcp6:80 tcp6:81 udp6:53 udp6:54 ping6", "tcp6:80 tcp6:81 udp6:53 udp6:54 ping6"},
	{"IPv4 TCP one way, IPv6 UDP the other", []control.Rule{
		rule("tag:a", "100.64.0.0/10", by(protoTCP)), rule("tag:b", "fd7a::/16", by(protoUDP)),
	}, "tcp4:80 tcp4:81 ping4", "udp6:53 udp6:54 ping6"},
	{"by a tag that nobody has", []control.Rule{rule("tag:c", "*")}, none, none},
	{"from everywhere but the tailnet", []control.Rule{rule("10.0.0.0/8 192.168.0.0/16", "*")}, none, none},
	{"to another device's address", []control.Rule{rule("*", "100.99.0.0/16")}, none, none},
	{"deny all again", nil, none, none},
}

// Every policy lets the same in, and counts the same refusals, on both ways.
func TestLocalPolicies(t *testing.T) {
	for _, p := range probes {
		if !slices.Contains(strings.Fields(every), p.String()) {
			t.Fatalf("%v is not among %q", p, every)
		}
	}
	lanes := newLanes(t, "acl")
	for _, row := range aclRows {
		t.Run(row.name, func(t *testing.T) {
			eachLane(lanes, func(l *lane) {
				l.policy(row.rules...)
				l.expectRefusals(t, row.ab, row.ba)
			})
		})
	}
}

// expectRefusals expects just these probes to pass, and each of the others to
// be counted once, where it is refused.
func (l *lane) expectRefusals(t *testing.T, ab, ba string) {
	t.Helper()
	beforeA, beforeB := l.aclDrops(l.a), l.aclDrops(l.b)
	locallyA, locallyB := l.deliveredLocally(l.a), l.deliveredLocally(l.b)
	var refusedA, refusedB int
	var wg sync.WaitGroup
	wg.Go(func() { refusedB = l.expect(t, l.a, l.b, ab) })
	wg.Go(func() { refusedA = l.expect(t, l.b, l.a, ba) })
	wg.Wait()
	for _, c := range []struct {
		at   string
		got  int64
		want int
	}{{"a", l.aclDrops(l.a) - beforeA, refusedA}, {"b", l.aclDrops(l.b) - beforeB, refusedB}} {
		if c.got != int64(c.want) {
			t.Errorf("%s: the metric at %s says %d packets were refused, %d should have been", l.way, c.at, c.got, c.want)
		}
	}
	if !l.local {
		return
	}
	// Answers count for the node that sends them; ICMP is WireGuard's.
	gotA := l.deliveredLocally(l.a) - locallyA
	gotB := l.deliveredLocally(l.b) - locallyB
	want := strings.Contains(ab+ba, "tcp") || strings.Contains(ab+ba, "udp")
	if (gotA > 0) != want || (gotB > 0) != want {
		t.Errorf("a and b have delivered %d and %d packets locally, with %q allowed", gotA, gotB, ab+ba)
	}
}

// expect asks all probes of one direction at once, and returns how many packets should
// have been refused. Probes with a wrong result are asked again.
func (l *lane) expect(t *testing.T, from, to side, pass string) (stopped int) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, p := range probes {
		want := silent
		if slices.Contains(strings.Fields(pass), p.String()) {
			want = p.passes()
		}
		wg.Go(func() {
			var got string
			for try := range 3 {
				if got = l.ask(from, to, p); got == want {
					break
				}
				if want == silent {
					break // it passed, and was not refused
				}
				time.Sleep(time.Duration(try) * 100 * time.Millisecond)
			}
			mu.Lock()
			defer mu.Unlock()
			if want == silent {
				stopped++
			}
			if got != want {
				t.Errorf("%s: %v from %s to %s is %s, want %s", l.way, p, from.spec.Name, to.spec.Name, got, want)
			}
		})
	}
	wg.Wait()
	return stopped
}
