// SPDX-License-Identifier: BSD-3-Clause

package config

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/net/http/httpproxy"
	"tailscale.com/feature"

	"tailscale-nri/nri-plugin/internal/settings"
)

// lowerCase is a proxy's variable under its other name, which many programs know
// as well.
func lowerCase(getenv func(string) string, key string) string {
	if !slices.Contains([]string{settings.HTTPSProxy, settings.HTTPProxy, settings.NoProxy}, key) {
		return ""
	}
	return set(getenv, strings.ToLower(key))
}

// proxies reads the three variables. A URL may hold a password, so it is not shown.
func (r *reader) proxies() httpproxy.Config {
	return httpproxy.Config{HTTPSProxy: r.proxy(settings.HTTPSProxy), HTTPProxy: r.proxy(settings.HTTPProxy), NoProxy: r.noProxy(settings.NoProxy)}
}

// noProxy refuses what curl takes and Go does not: a list with nothing but spaces
// between its entries would be one that nothing matches.
func (r *reader) noProxy(key string) string {
	v := r.text(key)
	for entry := range strings.SplitSeq(v, ",") {
		if len(strings.Fields(entry)) > 1 {
			r.bad(key, strings.TrimSpace(entry), "write commas between hosts, .domains and networks such as 10.0.0.0/8")
		}
	}
	return v
}

func (r *reader) proxy(key string) string {
	v := r.text(key)
	if v == "" {
		return ""
	}
	if !strings.Contains(v, "://") {
		v = "http://" + v // as curl and Go take it
	}
	u, err := url.Parse(v)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		r.errs = append(r.errs, fmt.Errorf("%s is not the URL of an HTTP proxy: write it as http://host:port or http://user:password@host:port, "+
			"with special characters of the password as %%XX", key))
		return ""
	}
	return v
}

// ProxyHosts are the proxies without their users and passwords, for the log.
func ProxyHosts(c httpproxy.Config) string {
	var hosts []string
	for _, text := range []string{c.HTTPSProxy, c.HTTPProxy} {
		if u, err := url.Parse(text); err == nil && u.Host != "" && !slices.Contains(hosts, u.Host) {
			hosts = append(hosts, u.Host)
		}
	}
	return strings.Join(hosts, ",")
}

// processProxy answers tailscale.com's queries for a proxy; its hooks are the process's, and can
// be set once.
var processProxy atomic.Pointer[httpproxy.Config]

// UseProxy has tailscale.com use the proxies for the control connection and DERP.
//
// Its own implementation (feature/useproxy, v1.104.5) is not linked in: it writes
// the proxy's URL, password and all, to the standard log, and to every node's
// log at each change of the host's interfaces. The URLs that it gets from here have
// no password, which might be printed; that is sent in the header.
func UseProxy(c httpproxy.Config) {
	if processProxy.Swap(&c) != nil {
		return
	}
	feature.HookProxyFromEnvironment.Set(func(req *http.Request) (*url.URL, error) {
		u, err := proxyFor(req.URL)
		// Only net/http asks for plain HTTP; it has no other way to the password,
		// and does not print it.
		if u == nil || err != nil || req.URL.Scheme == "http" {
			return u, err
		}
		bare := *u
		bare.User = nil
		return &bare, nil
	})
	feature.HookProxyGetAuthHeader.Set(func(proxy *url.URL) (string, error) { return proxyAuth(proxy), nil })
	feature.HookProxySetTransportGetProxyConnectHeader.Set(func(tr *http.Transport) {
		tr.GetProxyConnectHeader = func(_ context.Context, proxy *url.URL, _ string) (http.Header, error) {
			h := make(http.Header)
			if auth := proxyAuth(proxy); auth != "" {
				h.Set("Proxy-Authorization", auth)
			}
			return h, nil
		}
	})
}

// proxyFor is the proxy on the way to u, nil if there is none.
func proxyFor(u *url.URL) (*url.URL, error) {
	p, err := processProxy.Load().ProxyFunc()(u)
	if err != nil {
		return nil, errors.New("the proxy's URL cannot be used") // the error would show it
	}
	return p, nil
}

// proxyAuth is the Proxy-Authorization for a proxy, "" where it asks for none.
func proxyAuth(proxy *url.URL) string {
	c := processProxy.Load()
	for _, text := range []string{c.HTTPSProxy, c.HTTPProxy} {
		u, err := url.Parse(text)
		if err != nil || u.Host != proxy.Host || u.User == nil {
			continue
		}
		password, _ := u.User.Password()
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password))
	}
	return ""
}

// APITransport returns the transport for Tailscale's API. net/http does not print the proxy's URL.
func APITransport(c httpproxy.Config) http.RoundTripper {
	tr := http.DefaultTransport.(*http.Transport).Clone()
	proxy := c.ProxyFunc()
	tr.Proxy = func(req *http.Request) (*url.URL, error) { return proxy(req.URL) }
	return proxied{tr}
}

// proxied tells a proxy's refusal from one of the API. On the way to an https API
// net/http itself returns an error, with the words of the status.
type proxied struct{ base http.RoundTripper }

func (p proxied) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := p.base.RoundTrip(req)
	if err == nil && res.StatusCode == http.StatusProxyAuthRequired {
		res.Body.Close()
		return nil, fmt.Errorf("%s: check user and password in %s", http.StatusText(res.StatusCode), settings.HTTPProxy)
	}
	return res, err
}
