// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"tailscale-nri/k3d/lab/control"
)

// callBook notes the calls that were answered with 200.
type callBook struct {
	mu    sync.Mutex
	calls []string
}

func (b *callBook) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := http.DefaultTransport.RoundTrip(req)
	if err == nil && res.StatusCode == http.StatusOK {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.calls = append(b.calls, req.Method+" "+strings.TrimPrefix(req.URL.Path, "/api/v2/tailnet/-/"))
	}
	return res, err
}

// TestTryKey: a key is made with the tags, or the defaults, and is not left. An error
// says which of the two failed.
func TestTryKey(t *testing.T) {
	s := newAPI(t)
	for _, tags := range [][]string{nil, {"tag:web"}} {
		book := &callBook{}
		o := newOAuth(t, s, func(cfg *OAuthConfig) { cfg.Transport = book })
		if err := o.TryKey(testContext(t), tags); err != nil {
			t.Errorf("%v: %v", tags, err)
		}
		made := slices.ContainsFunc(book.calls, func(c string) bool { return c == "POST keys" })
		deleted := slices.ContainsFunc(book.calls, func(c string) bool { return strings.HasPrefix(c, "DELETE keys/") })
		if !made || !deleted {
			t.Errorf("%v: the API was asked for %q", tags, book.calls)
		}
	}
	o := newOAuth(t, s, nil)
	for _, tt := range []struct {
		fault control.Fault
		tags  []string
		op    string
	}{
		{control.Fault{Path: "/nowhere"}, []string{"tag:other"}, "minting a trial key"},
		{control.Fault{Path: "/api/v2/tailnet/-/keys/", Status: http.StatusForbidden}, nil, "deleting the trial key "},
	} {
		s.AddFault(tt.fault)
		var known *Error
		if err := o.TryKey(testContext(t), tt.tags); !errors.As(err, &known) || !strings.HasPrefix(known.Op, tt.op) || known.Temporary {
			t.Errorf("want an error of %q, got %v", tt.op, err)
		}
		s.ClearFaults()
	}
}
