// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"tailscale-nri/k3d/lab/control/issuertest"
)

const (
	issuerURL = "https://issuer.example.com"
	subject   = "system:serviceaccount:tailscale-nri:tailscale-nri"
	audience  = "api.tailscale.com/kID"
)

func newIssuer(t *testing.T, keyID string, algorithm jose.SignatureAlgorithm) (*issuertest.Issuer, json.RawMessage) {
	t.Helper()
	i, err := issuertest.New(issuerURL, keyID, algorithm)
	if err != nil {
		t.Fatal(err)
	}
	jwks, err := i.JWKS()
	if err != nil {
		t.Fatal(err)
	}
	return i, jwks
}

func sign(t *testing.T, i *issuertest.Issuer, change func(*jwt.Claims)) string {
	t.Helper()
	claims := i.Claims(subject, audience)
	if change != nil {
		change(&claims)
	}
	token, err := i.Sign(claims)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func exchange(t *testing.T, s *Server, id, token string) (status int, answer map[string]any) {
	t.Helper()
	form := url.Values{"client_id": {id}, "jwt": {token}}
	req, err := http.NewRequestWithContext(testContext(t), "POST", s.APIURL()+"/api/v2/oauth/token-exchange", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return do(t, req)
}

// TestExchange tries tokens that are good, and each way of not being so.
func TestExchange(t *testing.T) {
	for _, algorithm := range algorithms {
		t.Run(string(algorithm), func(t *testing.T) {
			i, jwks := newIssuer(t, "key-1", algorithm)
			impostor, _ := newIssuer(t, "key-1", algorithm)
			stranger, _ := newIssuer(t, "key-2", algorithm)
			var log bytes.Buffer
			s := start(t, Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
			err := s.TrustIssuer(Issuer{ClientID: "kID", URL: issuerURL, JWKS: jwks, Subject: "system:serviceaccount:*:tailscale-nri"})
			if err != nil {
				t.Fatal(err)
			}
			good := sign(t, i, nil)
			parts := strings.Split(good, ".")
			unsigned := "eyJhbGciOiJub25lIiwia2lkIjoia2V5LTEifQ." + parts[1] + "." // {"alg":"none","kid":"key-1"}
			for _, test := range []struct {
				name, id, token string
				status          int
				logged          string
			}{
				{"good", "kID", good, 200, ""},
				{"for others too", "kID", sign(t, i, func(c *jwt.Claims) { c.Audience = jwt.Audience{"sts.example.com", audience} }), 200, ""},
				{"no such client", "kOther", good, 403, "no such client"},
				{"no token", "kID", "", 400, ""},
				{"no client", "", good, 400, ""},
				{"not a token", "kID", "tskey-client-x", 403, "parsing it"},
				{"another's key under its ID", "kID", sign(t, impostor, nil), 403, "signature"},
				{"a key that the issuer does not have", "kID", sign(t, stranger, nil), 403, "signature"},
				{"claims of another token", "kID", parts[0] + "." + strings.Split(sign(t, i, func(c *jwt.Claims) { c.ID = "x" }), ".")[1] + "." + parts[2], 403, "signature"},
				{"not signed", "kID", unsigned, 403, "parsing it"},
				{"wrong issuer", "kID", sign(t, i, func(c *jwt.Claims) { c.Issuer += "/" }), 403, "(iss)"},
				{"wrong audience", "kID", sign(t, i, func(c *jwt.Claims) { c.Audience = jwt.Audience{"https://kubernetes.default.svc"} }), 403, "(aud)"},
				{"no audience", "kID", sign(t, i, func(c *jwt.Claims) { c.Audience = nil }), 403, "(aud)"},
				{"wrong subject", "kID", sign(t, i, func(c *jwt.Claims) { c.Subject += "-2" }), 403, "its subject"},
				{"a subject with more before it", "kID", sign(t, i, func(c *jwt.Claims) { c.Subject = "x:" + c.Subject }), 403, "its subject"},
				{"wrong subject with a line break", "kID", sign(t, i, func(c *jwt.Claims) { c.Subject += "\nx" }), 403, "its subject"},
				{"expired", "kID", sign(t, i, func(c *jwt.Claims) { c.Expiry = jwt.NewNumericDate(time.Now().Add(-2 * time.Second)) }), 403, "(exp)"},
				{"never expires", "kID", sign(t, i, func(c *jwt.Claims) { c.Expiry = nil }), 403, "never expires"},
				{"not yet good", "kID", sign(t, i, func(c *jwt.Claims) { c.NotBefore = jwt.NewNumericDate(time.Now().Add(time.Hour)) }), 403, "(nbf)"},
			} {
				log.Reset()
				before := s.Counters()
				status, answer := exchange(t, s, test.id, test.token)
				if status != test.status || !strings.Contains(log.String(), test.logged) {
					t.Errorf("%s: HTTP %d, log %q; want %d, %q", test.name, status, log.String(), test.status, test.logged)
				}
				if test.token != "" && strings.Contains(log.String(), test.token) {
					t.Errorf("%s: the token is in the log: %s", test.name, log.String())
				}
				c := s.Counters()
				if exchanged := c.Exchanges > before.Exchanges; exchanged != (status == 200) {
					t.Errorf("%s: HTTP %d, counted as exchanged: %v", test.name, status, exchanged)
				}
				switch status {
				case 200:
					tok, _ := answer["access_token"].(string)
					if called, _ := call(t, s, "GET", "/tailnet/-/devices", tok, ""); called != 200 || answer["expires_in"] != 3600.0 {
						t.Errorf("%s: the access token is good for HTTP %d and %v s", test.name, called, answer["expires_in"])
					}
				case 403:
					if answer["message"] != "Unauthorized" || c.NotExchanged != before.NotExchanged+1 {
						t.Errorf("%s: %v, %+v", test.name, answer, c)
					}
				}
			}
		})
	}
}

// TestFetchedKeys has the issuer replace its key, and a server that is not its
// own claim to be it.
func TestFetchedKeys(t *testing.T) {
	var jwks atomic.Value
	before, keys := newIssuer(t, "key-1", jose.ES256)
	jwks.Store(keys)
	web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write(jwks.Load().(json.RawMessage))
	}))
	defer web.Close()
	web.Config.ErrorLog = discardLog
	trusted := Issuer{ClientID: "kID", URL: issuerURL, JWKSURL: web.URL, Subject: subject, Audience: audience, TokenLife: time.Minute}
	s := start(t, Config{})
	if err := s.TrustIssuer(trusted); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("keys from a server that nobody vouches for: %v", err)
	}
	trusted.CA = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw}))
	if err := s.TrustIssuer(trusted); err != nil {
		t.Fatal(err)
	}
	if status, answer := exchange(t, s, "kID", sign(t, before, nil)); status != 200 || answer["expires_in"] != 60.0 {
		t.Errorf("HTTP %d, %v", status, answer)
	}
	after, keys := newIssuer(t, "key-2", jose.ES256)
	if status, _ := exchange(t, s, "kID", sign(t, after, nil)); status != 403 {
		t.Errorf("a token with a key that is not published: HTTP %d", status)
	}
	jwks.Store(keys)
	if status, _ := exchange(t, s, "kID", sign(t, after, nil)); status != 200 {
		t.Errorf("a token with the new key: HTTP %d", status)
	}
	if status, _ := exchange(t, s, "kID", sign(t, before, nil)); status != 403 {
		t.Errorf("a token with the key that is gone: HTTP %d", status)
	}
}

func TestBadIssuer(t *testing.T) {
	i, jwks := newIssuer(t, "key-1", jose.ES256)
	private, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{KeyID: "k", Key: []byte("a shared secret")}}})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	s := start(t, Config{})
	for name, test := range map[string]struct {
		change func(*Issuer)
		want   string
	}{
		"no client":         {func(i *Issuer) { i.ClientID = "" }, "ClientID"},
		"no issuer":         {func(i *Issuer) { i.URL = "" }, "URL"},
		"no subject":        {func(i *Issuer) { i.Subject = "" }, "Subject"},
		"no keys":           {func(i *Issuer) { i.JWKS = nil }, "JWKS"},
		"keys twice":        {func(i *Issuer) { i.JWKSURL = web.URL }, "JWKS"},
		"keys that are not": {func(i *Issuer) { i.JWKS = json.RawMessage(`{"keys":[]}`) }, "no set of public keys"},
		"not JSON":          {func(i *Issuer) { i.JWKS = json.RawMessage(`{`) }, "reading its keys"},
		"a secret":          {func(i *Issuer) { i.JWKS = private }, "no set of public keys"},
		"nothing there":     {func(i *Issuer) { i.JWKS, i.JWKSURL = nil, web.URL }, "404"},
		"no certificate":    {func(i *Issuer) { i.JWKS, i.JWKSURL, i.CA = nil, web.URL, "x" }, "CA"},
	} {
		bad := Issuer{ClientID: "kID", URL: issuerURL, JWKS: jwks, Subject: subject}
		test.change(&bad)
		if err := s.TrustIssuer(bad); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	if status, _ := exchange(t, s, "kID", sign(t, i, nil)); status != 403 {
		t.Errorf("a token of an issuer that nobody trusts: HTTP %d", status)
	}
}

func TestTokenLife(t *testing.T) {
	s := start(t, Config{TokenLife: time.Second})
	_, tok := token(t, s, "lab-client", "lab-secret")
	end := time.NewTimer(1100 * time.Millisecond)
	if status, _ := call(t, s, "GET", "/tailnet/-/devices", tok, ""); status != 200 {
		t.Errorf("with a new token: HTTP %d", status)
	}
	<-end.C
	if status, _ := call(t, s, "GET", "/tailnet/-/devices", tok, ""); status != 401 {
		t.Errorf("with one that has ended: HTTP %d", status)
	}
	if c := s.Counters(); c.Stale != 1 {
		t.Errorf("%d stale calls", c.Stale)
	}
}
