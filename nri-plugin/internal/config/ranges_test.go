// SPDX-License-Identifier: BSD-3-Clause

package config

import (
	"bytes"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
)

// The API server's address stays on eth0, and where it shows that Services are
// in Tailscale's range, the log says what to set.
func TestClusterRanges(t *testing.T) {
	for _, tt := range []struct {
		name, ranges, host, want string
		warns                    bool
	}{
		{"outside of a cluster", "10.0.0.0/8", "", "10.0.0.0/8", false},
		{"usual Services", "", "10.43.0.1", "10.43.0.1/32", false},
		{"kOps, nothing named", "", "100.64.0.1", "100.64.0.1/32", true},
		{"kOps, named", "100.64.0.0/13", "100.64.0.1", "100.64.0.0/13", false},
		{"IPv6", "10.0.0.0/8", "fd7a:115c:a1e0:1::1", "10.0.0.0/8 fd7a:115c:a1e0:1::1/128", true},
	} {
		var log bytes.Buffer
		c, err := parseConfig(Values{settings.AuthKey: plugintest.Secret, settings.ClusterRanges: tt.ranges})
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		got := ClusterRanges(c.Ranges, tt.host, slog.New(slog.NewTextHandler(&log, nil)))
		if said := strings.Contains(UnnamedServices(c.Ranges, tt.host), "TS_CLUSTER_RANGES"); said != tt.warns {
			t.Errorf("%s: said is %v, want %v", tt.name, said, tt.warns)
		}
		var text []string
		for _, p := range got {
			text = append(text, p.String())
		}
		if strings.Join(text, " ") != tt.want {
			t.Errorf("%s: got %v, want %s", tt.name, got, tt.want)
		}
		if warned := strings.Contains(log.String(), "TS_CLUSTER_RANGES"); warned != tt.warns {
			t.Errorf("%s: warned is %v, want %v: %s", tt.name, warned, tt.warns, log.String())
		}
	}
	r := newReader(plugintest.Environment(map[string]string{settings.ClusterRanges: " 10.0.0.0/8,, 192.0.2.1 , fd00::/8"}))
	want := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("fd00::/8")}
	if got := r.ranges(settings.ClusterRanges); !slices.Equal(got, want) || r.errs != nil {
		t.Errorf("got %v, %v, want %v", got, r.errs, want)
	}
}

// Services near the API server's stay on eth0, unless their range is named.
func TestServicesNear(t *testing.T) {
	for host, want := range map[string]string{
		"": "invalid Prefix", "10.43.0.1": "10.43.0.0/16", "10.96.0.1": "10.96.0.0/16", "172.20.0.1": "invalid Prefix",
		"fd98::1": "fd98::/112", "100.64.0.1": "invalid Prefix", "fd7a:115c:a1e0:1::1": "invalid Prefix",
	} {
		if got := ServicesNear([]netip.Prefix{netip.MustParsePrefix("172.20.0.0/16")}, host); got.String() != want {
			t.Errorf("near %q: %v, want %s", host, got, want)
		}
	}
}
