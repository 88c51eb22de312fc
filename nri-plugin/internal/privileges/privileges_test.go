// SPDX-License-Identifier: BSD-3-Clause

package privileges

import (
	"reflect"
	"testing"

	"tailscale-nri/nri-plugin/internal/plugintest"
)

func TestMissingCaps(t *testing.T) {
	for _, tt := range []struct {
		name, status string
		want         []string
		err          string
	}{
		{"all", "CapPrm:\t0000000000000000\nCapEff:\t000001ffffffffff\nCapBnd:\t0\n", nil, ""},
		{"just those", "CapEff:\t0000000000203800\n", nil, ""},
		{"Docker's default", "CapEff:\t00000000a80425fb\n", []string{"NET_ADMIN", "NET_BROADCAST", "SYS_ADMIN"}, ""},
		{"none", "CapEff:\t0000000000000000\n", []string{"NET_ADMIN", "NET_BROADCAST", "NET_RAW", "SYS_ADMIN"}, ""},
		{"no line", "Name:\tx\n", nil, "no CapEff"},
	} {
		got, err := Missing(tt.status)
		if !reflect.DeepEqual(got, tt.want) || !plugintest.ErrContains(err, tt.err) {
			t.Errorf("%s: got %v, %v, want %v, %q", tt.name, got, err, tt.want, tt.err)
		}
	}
}
