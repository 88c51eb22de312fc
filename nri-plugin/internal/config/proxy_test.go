// SPDX-License-Identifier: BSD-3-Clause

package config

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http/httpproxy"
	"tailscale.com/feature"

	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
)

// TestProxyHooks: what tailscale.com is handed for its control connection and for
// DERP reaches an https server through a proxy that wants a password, and nothing
// of that password can be printed on the way.
func TestProxyHooks(t *testing.T) {
	const user, password = "nri", plugintest.Secret + "%"
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }))
	t.Cleanup(server.Close)
	at, asked := plugintest.ConnectProxy(t, user, password, server.Listener.Addr().String())
	printed := &lockedBuffer{}
	log.SetOutput(printed)
	t.Cleanup(func() { log.SetOutput(io.Discard) })
	const host = "control.example.com" // 127.0.0.1 needs no proxy, by Go's rule
	c := httpproxy.Config{HTTPSProxy: "http://" + user + ":" + url.PathEscape(password) + "@" + at, NoProxy: "direct.example.com"}
	UseProxy(c)
	t.Cleanup(func() { UseProxy(httpproxy.Config{}) })

	ask := func(u string) *url.URL {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, u, nil)
		if err != nil {
			t.Fatal(err)
		}
		proxy, err := feature.HookProxyFromEnvironment.Get()(req)
		if err != nil {
			t.Fatal(err)
		}
		return proxy
	}
	proxy := ask("https://" + host)
	if proxy == nil || proxy.Host != at || proxy.User != nil {
		t.Fatalf("the proxy is %v", proxy)
	}
	for _, u := range []string{"https://direct.example.com", "http://" + host, "https://127.0.0.1"} {
		if got := ask(u); got != nil {
			t.Errorf("%s goes through %v", u, got)
		}
	}
	if auth, err := feature.HookProxyGetAuthHeader.Get()(proxy); err != nil || auth != "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":"+password)) {
		t.Errorf("the header for DERP is %q, %v", auth, err)
	}

	// As control/controlclient makes its transport.
	tr := server.Client().Transport.(*http.Transport).Clone()
	tr.Proxy = feature.HookProxyFromEnvironment.GetOrNil()
	feature.HookProxySetTransportGetProxyConnectHeader.Get()(tr)
	tr.TLSClientConfig.ServerName = "example.com" // as httptest's certificate has it
	for what, rt := range map[string]http.RoundTripper{"control": tr, "API": APITransport(c)} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+host, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := rt.RoundTrip(req)
		switch {
		case err == nil:
			res.Body.Close()
		case what == "API" && strings.Contains(err.Error(), "certificate"): // it came through: the certificate is httptest's
		default:
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := asked(); len(got) != 2 {
		t.Errorf("the proxy was asked for %q", got)
	}
	if text := printed.String(); strings.Contains(text, plugintest.Secret) || strings.Contains(text, "Basic") {
		t.Errorf("printed: %s", text)
	}
}

// lockedBuffer is written by other goroutines, servers' among them.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestProxyRefuses: a proxy's no is not taken for the API's, and names the
// variable.
func TestProxyRefuses(t *testing.T) {
	at, _ := plugintest.ConnectProxy(t, "nri", plugintest.Secret, "")
	c := httpproxy.Config{HTTPSProxy: "http://" + at, HTTPProxy: "http://nri:" + plugintest.Secret + "x@" + at}
	for target, want := range map[string]string{
		"https://api.example.com": "Proxy Authentication Required", "http://api.example.com": "check user and password in " + settings.HTTPProxy,
	} {
		req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, target, nil)
		if err != nil {
			t.Fatal(err)
		}
		if res, err := APITransport(c).RoundTrip(req); err == nil {
			res.Body.Close()
			t.Errorf("%s: %d", target, res.StatusCode)
		} else if !plugintest.ErrContains(err, want) || strings.Contains(err.Error(), plugintest.Secret) {
			t.Errorf("%s: %v, want %q", target, err, want)
		}
	}
}

func TestNoProxy(t *testing.T) {
	const spaces = "localhost 10.0.0.0/8"
	for value, ok := range map[string]bool{"": true, "localhost, .svc,10.0.0.0/8,": true, "*": true, spaces: false, ".svc," + spaces: false} {
		_, err := Read(plugintest.Environment(map[string]string{settings.AuthKey: "k", settings.NoProxy: value}))
		if (err == nil) != ok {
			t.Errorf("%q: %v", value, err)
		}
		if !ok && !plugintest.ErrContains(err, settings.NoProxy+` is "`+spaces+`": write commas`) {
			t.Errorf("%q: %v", value, err)
		}
	}
}
