// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"tailscale.com/client/tailscale/apitype"
)

// Each endpoint of tailscale.com's LocalAPI decides for itself whether a reader may
// call it (ipn/localapi/localapi.go), and some that change things do not check. So a
// pod gets only the endpoints that are listed here. A request is built from what was
// checked: no header, no body, no parameter of another name goes through.

const (
	pathPrefix  = "/localapi/v0/"
	pathStatus  = pathPrefix + "status"
	pathWhoIs   = pathPrefix + "whois"
	pathPing    = pathPrefix + "ping"
	pathDERPMap = pathPrefix + "derpmap"
	pathMetrics = pathPrefix + "usermetrics"
	pathPrefs   = pathPrefix + "prefs"
)

// Costs of calls, in units of apiRate.
const (
	costConn  = 2
	costSmall = 1
	costLarge = 100
)

// endpoint is an endpoint that may be called.
type endpoint struct {
	method string
	query  []string // parameters
	cost   int
	large  bool // the answer may have any size
}

// callable is what one kind of caller may call.
type callable struct {
	endpoints map[string]endpoint // by path
	rule      string              // told to a caller that is refused
}

// podMayCall returns what a pod may call of its own node.
func podMayCall() callable {
	return callable{map[string]endpoint{
		pathStatus:  {http.MethodGet, []string{"peers"}, costLarge, true},
		pathWhoIs:   {http.MethodGet, []string{"addr", "proto", "svc_name", "dst_ip"}, costSmall, false},
		pathPing:    {http.MethodPost, []string{"ip", "type", "size"}, costLarge, false},
		pathDERPMap: {http.MethodGet, nil, costLarge, true},
		pathMetrics: {http.MethodGet, nil, costLarge, true},
	}, "a pod can read its node's LocalAPI (status, whois, ping, derpmap, usermetrics) and change nothing"}
}

// rootMayCall returns what root of the host may call of any pod's node. Only the pod's
// annotations may change a node, so it is reading too.
func rootMayCall() callable {
	may := podMayCall()
	may.endpoints[pathPrefs] = endpoint{http.MethodGet, nil, costSmall, false}
	may.rule = "root can read the LocalAPI of a pod's node (status, whois, ping, derpmap, usermetrics, prefs) and change nothing"
	return may
}

// pingTypes are the pings that a node sends and answers in the tailnet. A peerapi ping
// is a request over HTTP by this process.
var pingTypes = []string{"disco", "TSMP", "ICMP"}

// maxParameter is far above the length of any address, key or name.
const maxParameter = 256

// call is an allowed request.
type call struct {
	endpoint
	rule  string // of its callable
	path  string
	query url.Values
}

// request returns the call as localapi expects it.
func (c call) request(ctx context.Context) *http.Request {
	r := &http.Request{
		Method: c.method, URL: &url.URL{Path: c.path, RawQuery: c.query.Encode()}, Host: apitype.LocalAPIHost,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Body: http.NoBody,
	}
	return r.WithContext(ctx)
}

// allow checks a request. Its error says what may be called.
func (m callable) allow(r *http.Request) (call, error) {
	c := call{path: r.URL.Path, rule: m.rule}
	var ok bool
	c.endpoint, ok = m.endpoints[c.path]
	// The path as it was sent, before a parser changes it: escapes, a scheme and host
	// before it.
	sent, query, _ := strings.Cut(r.RequestURI, "?")
	switch {
	case !ok || sent != c.path || r.Method != c.method:
		return call{}, c.refusal(r)
	case r.Header.Get("Upgrade") != "" || r.ContentLength != 0 || len(r.TransferEncoding) > 0:
		return call{}, fmt.Errorf("%w with a body or an upgrade of the connection", c.refusal(r))
	case r.Header.Get("Origin") != "" || r.Header.Get("Referer") != "":
		return call{}, fmt.Errorf("%w for a web page", c.refusal(r))
	}
	var err error
	if c.query, err = url.ParseQuery(query); err != nil {
		return call{}, fmt.Errorf("%w with an invalid query", c.refusal(r))
	}
	return c, c.checkQuery(r)
}

// checkQuery checks the parameters of a request.
func (c call) checkQuery(r *http.Request) error {
	for name, values := range c.query {
		if !slices.Contains(c.endpoint.query, name) || len(values) != 1 || len(values[0]) > maxParameter {
			return fmt.Errorf("%w with the parameter %.40q: it takes %s, each once", c.refusal(r), name,
				strings.Join(append(c.endpoint.query, "nothing else"), ", "))
		}
	}
	if size := c.query.Get("size"); size != "" {
		if _, err := strconv.ParseUint(size, 10, 16); err != nil {
			return fmt.Errorf("%w of size %.40q: write a number of bytes", c.refusal(r), size)
		}
	}
	if c.path == pathPing && !slices.Contains(pingTypes, c.query.Get("type")) {
		return fmt.Errorf("%w of type %.40q: write one of %s", c.refusal(r), c.query.Get("type"), strings.Join(pingTypes, ", "))
	}
	return nil
}

// refusal returns the error that names what is refused.
func (c call) refusal(r *http.Request) error {
	return fmt.Errorf("tailscale-nri: %s: refused %.20s %.80q", c.rule, r.Method, r.RequestURI)
}
