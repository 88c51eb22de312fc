// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
)

// TestUplink asks a server of the machine from inside the node: at an address of the machine's own, so that nothing
// leaves the machine. Without the uplink the same server cannot be reached.
func TestUplink(t *testing.T) {
	listener, err := net.Listen("tcp", net.JoinHostPort(machineAddr(t), "0"))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte("outside"))
	}))
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)

	for _, uplink := range []bool{false, true} {
		t.Run(map[bool]string{false: "closed", true: "open"}[uplink], func(t *testing.T) {
			cfg := testConfig(t)
			cfg.Uplink = uplink
			lab, err := Up(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { downLab(t, lab) })
			out, err := lab.InNode(t.Context(), lab.ToolPath(), "get", "-timeout", "10s", server.URL)
			if reached := err == nil && out == "outside"; reached != uplink {
				t.Errorf("the node asks the machine: %q, %v", out, err)
			}
			resolv, err := lab.InNode(t.Context(), "cat", "/etc/resolv.conf")
			if strings.Contains(resolv, uplinkDNS) != uplink || err != nil {
				t.Errorf("the node's resolv.conf is %q: %v", resolv, err)
			}
		})
	}
}

// machineAddr is an IPv4 address of the machine that is not a loopback one.
func machineAddr(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && ip.IP.IsGlobalUnicast() {
			return ip.IP.String()
		}
	}
	t.Fatal("the machine has no IPv4 address but loopback; give it one")
	return ""
}

// TestNodeCannotWriteEtc: what runs in the node cannot change the machine's configuration.
func TestNodeCannotWriteEtc(t *testing.T) {
	lab := upLab(t)
	before, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lab.InNode(t.Context(), "touch", "/etc/tsnri-lt"); err == nil {
		os.Remove("/etc/tsnri-lt")
		t.Error("the node can write to /etc")
	}
	if _, err := lab.InNode(t.Context(), "sh", "-c", "echo lost >/etc/resolv.conf && touch /run/lost /var/lib/lost"); err != nil {
		t.Error(err)
	}
	after, err := os.ReadFile("/etc/resolv.conf")
	if err != nil || string(after) != string(before) {
		t.Errorf("the machine's resolv.conf has become %q: %v", after, err)
	}
	for _, file := range []string{"/run/lost", "/var/lib/lost"} {
		if _, err := os.Stat(file); err == nil {
			t.Errorf("the node has written the machine's %s", file)
		}
	}
}
