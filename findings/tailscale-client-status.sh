#!/usr/bin/env bash
# tailscale-client-status: what Tailscale's API client says of answers that are not the API's own, such as a proxy's.
#
# tailscale.com/client/tailscale/v2 v2.10.1 against an HTTP server on loopback.
# Guess: IsNotFound goes by the status, so a 404 is "not found" whatever its body is; any other status that is not a
#   success is an error that names the status; an error of RFC 7807 (as Headscale's) keeps its text.
# Seen:  only a body that is JSON makes an error of the API. A proxy's 404 or 502 in HTML is "invalid character '<'",
#   which no longer has the status: a device that is gone does not show as gone. The text of a "detail" is
#   lost, only "message" counts. And only 400 and above is an error at all: a 304 makes Devices().List return no devices
#   and no error, Get a device without an ID and no error; Delete succeeds with any body. A program that deletes
#   all that is not in the list, or makes what is missing, has to look at more than the error.
# Exits 1 if that has changed. Needs Go 1.21 or later and the module proxy; nothing leaves loopback otherwise.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
export GOTOOLCHAIN=go1.27.4 GOWORK=off GOFLAGS=-mod=mod

cat >go.mod <<'END'
module finding

go 1.26.0

require tailscale.com/client/tailscale/v2 v2.10.1
END

cat >main.go <<'END'
package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"

	tailscale "tailscale.com/client/tailscale/v2"
)

func main() {
	ctx := context.Background()
	for _, c := range []struct {
		status int
		body   string
	}{
		{404, `{"message":"no such device"}`},
		{404, "<html>not found</html>"},
		{502, "<html>bad gateway</html>"},
		{500, `{"title":"Internal Server Error","detail":"database is locked"}`},
		{304, ""},
		{200, "<html>log in here</html>"},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(c.status)
			fmt.Fprint(w, c.body)
		}))
		base, err := url.Parse(srv.URL)
		if err != nil {
			panic(err)
		}
		devices := (&tailscale.Client{BaseURL: base, APIKey: "key", Tailnet: "-"}).Devices()
		fmt.Printf("%d with %q\n", c.status, c.body)
		list, err := devices.List(ctx)
		fmt.Printf("\tList: %d devices, %v\n", len(list), err)
		device, err := devices.Get(ctx, "id")
		fmt.Printf("\tGet: a device: %t, not found: %t, %v\n", device != nil, tailscale.IsNotFound(err), err)
		fmt.Printf("\tDelete: %v\n", devices.Delete(ctx, "id"))
		srv.Close()
	}
}
END

cat >want <<'END'
404 with "{\"message\":\"no such device\"}"
	List: 0 devices, no such device (404)
	Get: a device: false, not found: true, no such device (404)
	Delete: no such device (404)
404 with "<html>not found</html>"
	List: 0 devices, invalid character '<' looking for beginning of value
	Get: a device: false, not found: false, invalid character '<' looking for beginning of value
	Delete: invalid character '<' looking for beginning of value
502 with "<html>bad gateway</html>"
	List: 0 devices, invalid character '<' looking for beginning of value
	Get: a device: false, not found: false, invalid character '<' looking for beginning of value
	Delete: invalid character '<' looking for beginning of value
500 with "{\"title\":\"Internal Server Error\",\"detail\":\"database is locked\"}"
	List: 0 devices,  (500)
	Get: a device: false, not found: false,  (500)
	Delete:  (500)
304 with ""
	List: 0 devices, <nil>
	Get: a device: true, not found: false, <nil>
	Delete: <nil>
200 with "<html>log in here</html>"
	List: 0 devices, hujson: line 1, column 1: invalid character '<' at start of value
	Get: a device: false, not found: false, hujson: line 1, column 1: invalid character '<' at start of value
	Delete: <nil>
END

go run . >seen
cat seen
diff -u want seen || { echo "tailscale-client-status: it has changed" >&2; exit 1; }
