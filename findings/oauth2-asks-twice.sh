#!/usr/bin/env bash
# oauth2-asks-twice: how many requests one Token call of golang.org/x/oauth2 makes, and what it takes for "never expires".
#
# golang.org/x/oauth2 v0.37.0, clientcredentials.Config with AuthStyle left out, a token endpoint on loopback.
# Guess: one request where the endpoint is down (503) or says "slow down" (429), two where the secret is refused (401), in
#   case it was looked for in the wrong place; "expires_in":0 is a token that has expired.
# Seen:  two requests whatever the error is, the first with the secret in the Authorization header, the second with the
#   secret in the body; and so again at the next call, since only a success settles the style. An endpoint that limits
#   its callers is asked twice by each of them. A number of seconds of 0 or null never expires, and is kept forever;
#   of 5 is asked for again at each call (a token counts as expired 10 s early); and "3600", a string, is taken.
# Exits 1 if that has changed. Needs Go 1.21 or later and the module proxy; nothing leaves loopback otherwise.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
export GOTOOLCHAIN=go1.27.4 GOWORK=off GOFLAGS=-mod=mod

cat >go.mod <<'END'
module finding

go 1.25.0

require golang.org/x/oauth2 v0.37.0
END

cat >main.go <<'END'
package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

func main() {
	for _, c := range []struct {
		name, body string
		status     int
		style      oauth2.AuthStyle
	}{
		{"503", `{"error":"temporarily_unavailable"}`, 503, oauth2.AuthStyleAutoDetect},
		{"429", "slow down", 429, oauth2.AuthStyleAutoDetect},
		{"401", `{"error":"invalid_client"}`, 401, oauth2.AuthStyleAutoDetect},
		{"503 with a style", `{"error":"temporarily_unavailable"}`, 503, oauth2.AuthStyleInHeader},
		{"expires_in 3600", `{"access_token":"a","expires_in":3600}`, 200, oauth2.AuthStyleAutoDetect},
		{`expires_in "3600"`, `{"access_token":"a","expires_in":"3600"}`, 200, oauth2.AuthStyleAutoDetect},
		{"expires_in 5", `{"access_token":"a","expires_in":5}`, 200, oauth2.AuthStyleAutoDetect},
		{"expires_in 0", `{"access_token":"a","expires_in":0}`, 200, oauth2.AuthStyleAutoDetect},
		{"expires_in null", `{"access_token":"a","expires_in":null}`, 200, oauth2.AuthStyleAutoDetect},
	} {
		var asked []string
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			secret := "body"
			if _, _, ok := r.BasicAuth(); ok {
				secret = "header"
			}
			asked = append(asked, secret)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(c.status)
			fmt.Fprint(w, c.body)
		}))
		cfg := clientcredentials.Config{ClientID: "id", ClientSecret: "secret", TokenURL: srv.URL, AuthStyle: c.style}
		source, end := cfg.TokenSource(context.Background()), "an error"
		for range 2 { // calls
			if t, err := source.Token(); err == nil {
				end = fmt.Sprintf("a token, expires: %t", !t.Expiry.IsZero())
			}
		}
		srv.Close()
		fmt.Printf("%s: two calls, %d requests (%s): %s\n", c.name, len(asked), strings.Join(asked, " "), end)
	}
}
END

cat >want <<'END'
503: two calls, 4 requests (header body header body): an error
429: two calls, 4 requests (header body header body): an error
401: two calls, 4 requests (header body header body): an error
503 with a style: two calls, 2 requests (header header): an error
expires_in 3600: two calls, 1 requests (header): a token, expires: true
expires_in "3600": two calls, 1 requests (header): a token, expires: true
expires_in 5: two calls, 2 requests (header header): a token, expires: true
expires_in 0: two calls, 1 requests (header): a token, expires: false
expires_in null: two calls, 1 requests (header): a token, expires: false
END

go run . >seen
cat seen
diff -u want seen || { echo "oauth2-asks-twice: it has changed" >&2; exit 1; }
