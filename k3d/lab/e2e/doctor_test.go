// SPDX-License-Identifier: BSD-3-Clause

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tailscale-nri/k3d/lab/control"
)

// finding is one of the doctor's.
type finding struct{ Check, Result, Seen, Remedy string }

// doctor returns what the plugin's doctor finds in the node, and its exit code.
func (s *stage) doctor(args ...string) (findings []finding, code int) {
	s.t.Helper()
	out, err := s.Doctor(s.ctx, nil, append([]string{"-json"}, args...)...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		s.must(err)
	}
	s.must(json.Unmarshal([]byte(out), &findings))
	return findings, code
}

// expectFinding wants one of that check and result, whose text holds seen.
func expectFinding(t *testing.T, findings []finding, check, result, seen string) {
	t.Helper()
	for _, f := range findings {
		if f.Check == check && f.Result == result && strings.Contains(f.Seen, seen) {
			return
		}
	}
	t.Errorf("want %s: %s, %q; got %+v", check, result, seen, findings)
}

// TestDoctor looks at a node with containerd and a pod that is served, and finds nothing that is wrong; what the doctor
// does is not a change. Then each of what it looks for happens to that node, and goes again.
func TestDoctor(t *testing.T) {
	t.Parallel()
	s := openServed(t, "doctor")
	pod := s.runServing("web")
	s.eventually(func() error { // the netmap, with the DERP map, comes to disk within a second
		findings, _ := s.doctor()
		for _, f := range findings {
			if f.Check == "DERP" && f.Result == "ok" {
				return nil
			}
		}
		return fmt.Errorf("the DERP map is not known: %+v", findings)
	})
	before, err := s.Traces(s.ctx)
	s.must(err)
	findings, code := s.doctor()
	after, err := s.Traces(s.ctx)
	s.must(err)
	if !reflect.DeepEqual(before, after) {
		t.Errorf("the node had %+v, and has %+v", before, after)
	}
	for _, f := range findings {
		// The lab has neither a network manager's /run nor a pod for the plugin, by which it would know its runtime.
		if f.Result != "ok" && f.Check != "network managers" && f.Check != "NRI" || f.Remedy != "" {
			t.Errorf("a node with nothing wrong: %+v", f)
		}
	}
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	expectFinding(t, findings, "NRI", "unknown", "registered with containerd ")
	expectFinding(t, findings, "plugin", "ok", "1 pods, 1 of them Running")
	expectFinding(t, findings, "devices", "ok", "1 devices of this cluster, 1 in the tailnet")
	expectFinding(t, findings, "leftovers", "ok", "1 links, 1 records")
	expectFinding(t, findings, "DERP", "ok", "as a pod here was told")

	s.doctorFails("devices", "fail", "1 allowed", func() {}, "-device-limit", "1")
	s.doctorFails("control plane", "fail", "cannot be reached", func() { s.outage(control.Refusing) })
	s.outage(control.Up)
	s.inNode("ip", "link", "set", "eth0", "mtu", "1300")
	s.inNode("ip", "addr", "add", "100.64.9.9/24", "dev", "eth0")
	s.inNode("ip", "addr", "add", "169.254.9.9/16", "dev", before.Links[0])
	findings, code = s.doctor()
	expectFinding(t, findings, "MTU", "warn", "MTU 1300")
	expectFinding(t, findings, "address ranges", "warn", "100.64.9.9/24 (address on eth0)")
	expectFinding(t, findings, "network managers", "warn", "169.254.9.9/16")
	if code != 0 {
		t.Errorf("exit code %d for warnings", code)
	}

	// UDP of the plugin alone is dropped, as by a firewall. Nothing of TCP is.
	s.inNode("ip", "rule", "add", "pref", "6", "ipproto", "udp", "unreachable")
	s.doctorFails("UDP", "warn", "no STUN server has answered", func() {})
	s.inNode("ip", "rule", "del", "pref", "6")

	// A tailscaled on the host has rules that lead its own sockets past its routes. The plugin's have no such mark, so the
	// doctor's must not have it either.
	s.inNode("ip", "rule", "add", "pref", "6", "fwmark", "0x80000/0xff0000", "unreachable")
	findings, _ = s.doctor()
	for _, check := range []string{"control plane", "DERP", "UDP"} {
		expectFinding(t, findings, check, "ok", "")
	}
	s.inNode("ip", "rule", "del", "pref", "6")

	s.doctorFails("plugin", "fail", "no process answers", func() { s.must(s.Plugin.Kill(s.ctx)) })
	s.must(s.RemovePod(s.ctx, pod))
	s.doctorFails("leftovers", "warn", "records without a sandbox: default/web", func() {})
	s.doctorFails("NRI", "unknown", "containerd listens on the NRI socket", func() {})
	s.must(s.Lab.Containerd().Stop(s.ctx, unix.SIGTERM))
	s.doctorFails("NRI", "fail", "nothing listens on the NRI socket", func() {})
}

// TestDoctorNextToTailscaled looks at a host that runs a stock tailscaled: the lab's peer. It has neither an exit node nor
// accepted routes; what either would add to its table is added by hand.
func TestDoctorNextToTailscaled(t *testing.T) {
	t.Parallel()
	s := openServed(t, "nextto")
	s.must(s.StartPeer(s.ctx))
	s.runServing("web") // a peer of its, so that the table has a route
	binary, err := s.PluginPath()
	s.must(err)
	expect := func(result, seen string) {
		t.Helper()
		var findings []finding
		out, err := s.Peer.Exec(s.ctx, binary, "doctor", "-json")
		if err == nil {
			t.Errorf("a host without a plugin: %s", out)
		}
		s.must(json.Unmarshal([]byte(out), &findings))
		expectFinding(t, findings, "host's tailscaled", result, seen)
		expectFinding(t, findings, "address ranges", "ok", "")
	}
	s.eventually(func() error {
		out, err := s.Peer.Exec(s.ctx, "ip", "route", "show", "table", "52")
		if err == nil && !strings.Contains(out, "dev tailscale0") {
			err = fmt.Errorf("no route in table 52: %q", out)
		}
		return err
	})
	expect("ok", "with neither an exit node nor accepted routes")
	for _, add := range []struct{ route, seen string }{{"198.51.100.0/24", "accepted 1 routes"}, {"default", "an exit node is set"}} {
		_, err := s.Peer.Exec(s.ctx, "ip", "route", "add", add.route, "dev", "tailscale0", "table", "52")
		s.must(err)
		expect("warn", add.seen)
	}
}

// doctorFails wants a finding once something has happened.
func (s *stage) doctorFails(check, result, seen string, happens func(), args ...string) {
	s.t.Helper()
	happens()
	findings, code := s.doctor(args...)
	expectFinding(s.t, findings, check, result, seen)
	if failed := slices.ContainsFunc(findings, func(f finding) bool { return f.Result == "fail" }); failed != (code == 1) {
		s.t.Errorf("exit code %d with %+v", code, findings)
	}
}

// inNode runs a program in the node.
func (s *stage) inNode(name string, args ...string) {
	s.t.Helper()
	_, err := s.Lab.InNode(s.ctx, name, args...)
	s.must(err)
}
