// SPDX-License-Identifier: BSD-3-Clause

package plugintest

import (
	"testing"

	"tailscale-nri/k3d/lab/control"
	"tailscale-nri/nri-plugin/internal/settings"
)

// StartControl is a tailnet whose API gives tag:k8s-pod and tag:web.
func StartControl(t *testing.T) *control.Server {
	t.Helper()
	s, err := control.Start(control.Config{Tags: []string{"tag:k8s-pod", "tag:web"}, OAuthClientSecret: Secret})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// PlaneVars are the settings for its OAuth client.
func PlaneVars(s *control.Server) []string {
	return []string{settings.LoginServer + "=" + s.ControlURL(), settings.APIURL + "=" + s.APIURL(), settings.OAuthID + "=lab-client", settings.OAuthSecret + "=" + Secret}
}
