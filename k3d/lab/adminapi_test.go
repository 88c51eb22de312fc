// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"tailscale-nri/k3d/lab/control"
	"tailscale-nri/k3d/lab/control/issuertest"
)

// newAdminAPI serves the admin API of a tailnet of its own.
func newAdminAPI(t *testing.T) (*control.Server, *ControlPlane) {
	t.Helper()
	server, err := control.Start(control.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	cfg := Config{Dir: t.TempDir()}
	listener, err := net.Listen("unix", cfg.path(controlSocket))
	if err != nil {
		t.Fatal(err)
	}
	api := &http.Server{Handler: adminAPIHandler(server, control.Config{})}
	go api.Serve(listener)
	t.Cleanup(func() { api.Close() })
	return server, cfg.controlClient()
}

// TestAdminAPI asks over the socket for what is done to a device: that there is none is the server's own answer.
func TestAdminAPI(t *testing.T) {
	_, plane := newAdminAPI(t)
	ctx := t.Context()
	_, exit := plane.Exit(ctx, "nNone", 1)
	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"Expire":      {plane.Expire(ctx, "nNone"), `no device "nNone" to expire`},
		"Delete":      {plane.Delete(ctx, "nNone"), `no device "nNone" to delete`},
		"SetLastSeen": {plane.SetLastSeen(ctx, "nNone", time.Now()), `no device "nNone" to age`},
		"SetRoutes":   {plane.SetRoutes(ctx, "nNone"), `no device "nNone" to route`},
		"Exit":        {exit, `no device "nNone" to end`},
	} {
		if test.err == nil || !strings.Contains(test.err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, test.err, test.want)
		}
	}
	if n, err := plane.Exit(ctx, "", 1); n != 0 || err != nil {
		t.Errorf("Exit of all = %d, %v", n, err)
	}
}

// TestAdminAPITrustsIssuer hands an issuer over as the e2e does, and has the API exchange one of its tokens.
func TestAdminAPITrustsIssuer(t *testing.T) {
	server, plane := newAdminAPI(t)
	ctx := t.Context()
	kubernetes, err := issuertest.New("https://kubernetes.default.svc.cluster.local", "key-1", jose.RS256)
	if err != nil {
		t.Fatal(err)
	}
	jwks, err := kubernetes.JWKS()
	if err != nil {
		t.Fatal(err)
	}
	trusted := control.Issuer{
		ClientID: "lab-identity", URL: kubernetes.URL, JWKS: jwks,
		Subject: "system:serviceaccount:tailscale-nri:*", TokenLife: 90 * time.Second,
	}
	if err := plane.TrustIssuer(ctx, trusted); err != nil {
		t.Fatal(err)
	}
	token, err := kubernetes.Sign(kubernetes.Claims("system:serviceaccount:tailscale-nri:tailscale-nri", "api.tailscale.com/lab-identity"))
	if err != nil {
		t.Fatal(err)
	}
	form := url.Values{"client_id": {trusted.ClientID}, "jwt": {token}}
	res, err := http.PostForm(server.APIURL()+"/api/v2/oauth/token-exchange", form)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var answer struct {
		Seconds int `json:"expires_in"`
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil || res.StatusCode != http.StatusOK || answer.Seconds != 90 {
		t.Errorf("the exchange: %s, for %d s, %v", res.Status, answer.Seconds, err)
	}
	if c, err := plane.Counters(ctx); c.Exchanges != 1 || err != nil {
		t.Errorf("counters %+v, %v", c, err)
	}
	trusted.JWKS = nil
	if err := plane.TrustIssuer(ctx, trusted); err == nil || !strings.Contains(err.Error(), "JWKS") {
		t.Errorf("an issuer without keys: %v", err)
	}
}
