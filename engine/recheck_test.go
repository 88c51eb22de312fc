// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"testing"
	"time"

	"tailscale-nri/engine/tailnet"
)

// Tailscale's own login server, named or not, is not asked again and again.
func TestTailscaleIsNotRechecked(t *testing.T) {
	for _, url := range []string{"", "https://controlplane.tailscale.com", "https://login.tailscale.com/"} {
		access, err := tailnet.NewStatic(tailnet.StaticConfig{AuthKey: "key", ControlURL: url})
		if err != nil {
			t.Fatal(err)
		}
		e := &Engine{cfg: Config{recheckEvery: time.Hour}, tailnets: map[string]tailnetAccess{"": {Tailnet: access}}}
		done := make(chan struct{})
		go func() {
			e.recheck(t.Context(), "")
			close(done)
		}()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Errorf("login server %q is asked again and again", url)
		}
	}
}
