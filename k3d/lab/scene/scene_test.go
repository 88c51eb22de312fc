// SPDX-License-Identifier: BSD-3-Clause

package scene

import (
	"strings"
	"testing"

	"tailscale-nri/k3d/lab"
)

func pod(ips ...string) *Pod { return &Pod{Pod: lab.Pod{IPs: ips}} }

func TestAlike(t *testing.T) {
	const before = `2: eth0@if5: <UP> mtu 1500 link/ether 02:00:00:00:00:01 link-netnsid 0
2: eth0 inet 10.86.0.2/24 brd 10.86.0.255 scope global eth0
2: eth0 inet6 fe80::1/64 scope link
default via 10.86.0.1 dev eth0
local 10.86.0.2 dev eth0 table local
nameserver 10.96.0.10
`
	was := Network(before).Alike(pod("10.86.0.2"))
	same := strings.NewReplacer("10.86.0.2/", "10.86.0.25/", "10.86.0.2 ", "10.86.0.25 ", "if5", "if19",
		":01", ":02", "fe80::1/", "fe80::2/").Replace(before)
	if err := Differs("same", was, Network(same).Alike(pod("10.86.0.25"))); err != nil {
		t.Error(err)
	}
	for _, c := range []struct{ old, new string }{
		{"default via 10.86.0.1", "default via 10.86.0.9"},
		{"nameserver 10.96.0.10", "nameserver 100.100.100.100"},
		{"mtu 1500", "mtu 1280"},
		{"2: eth0 inet6", "3: ts0 inet6"},
	} {
		err := Differs("changed", was, Network(strings.Replace(same, c.old, c.new, 1)).Alike(pod("10.86.0.25")))
		if err == nil || !strings.Contains(err.Error(), c.new) || !strings.Contains(err.Error(), c.old) {
			t.Errorf("%s for %s: %v", c.new, c.old, err)
		}
	}
}

func TestLabCommand(t *testing.T) {
	for _, c := range []struct {
		cfg  lab.Config
		want string
	}{
		{lab.Config{}, ".build/bin/lab"},
		{lab.Config{Name: "n", Dir: "/run/d", Build: "/b"}, "LAB_BUILD=/b LAB_NAME=n LAB_DIR=/run/d /b/bin/lab"},
	} {
		if got := (&Scene{cfg: Config{Lab: c.cfg}}).labCommand(); got != c.want {
			t.Errorf("%+v: %s, want %s", c.cfg, got, c.want)
		}
	}
}

func TestOwnTailnetHidesSecret(t *testing.T) {
	own := OwnTailnet{ClientID: "id", ClientSecret: "hidden"}
	if text := own.String(); strings.Contains(text, "hidden") {
		t.Error(text)
	}
}
