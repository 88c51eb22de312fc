// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

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

// endingTransport ends a context at a call that makes a key: before it is sent, or
// once it is answered.
type endingTransport struct {
	callBook
	end    context.CancelFunc
	before bool
}

func (e *endingTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	mints := req.Method == http.MethodPost && strings.HasSuffix(req.URL.Path, "/keys")
	if mints && e.before {
		e.end()
	}
	res, err := e.callBook.RoundTrip(req)
	if mints && !e.before {
		e.end()
	}
	return res, err
}

// TestTryKeyInterrupted: a key is deleted also where the caller's context ends while
// it is made, or right after.
func TestTryKeyInterrupted(t *testing.T) {
	s := newAPI(t)
	for _, before := range []bool{true, false} {
		ctx, cancel := context.WithCancel(testContext(t))
		book := &endingTransport{end: cancel, before: before}
		o := newOAuth(t, s, func(cfg *OAuthConfig) { cfg.Transport = book })
		if err := o.TryKey(ctx, nil); err != nil {
			t.Errorf("ended before: %v; %v", before, err)
		}
		if !slices.ContainsFunc(book.calls, func(c string) bool { return strings.HasPrefix(c, "DELETE keys/") }) {
			t.Errorf("ended before: %v; a key is left: %q", before, book.calls)
		}
	}
}

// TestTryKeyEnds: an API that does not answer is waited for as long as the context
// says, and a little longer where a key is to be deleted.
func TestTryKeyEnds(t *testing.T) {
	s := newAPI(t)
	for _, path := range []string{"/api/v2/tailnet/-/keys", "/api/v2/tailnet/-/keys/"} {
		o := newOAuth(t, s, nil)
		if err := o.TryKey(testContext(t), nil); err != nil {
			t.Fatal(err)
		}
		s.AddFault(control.Fault{Path: path, Hang: true})
		ctx, cancel := context.WithTimeout(testContext(t), 100*time.Millisecond)
		began := time.Now()
		if err := o.TryKey(ctx, nil); err == nil {
			t.Errorf("%s hangs, and there is no error", path)
		}
		if took := time.Since(began); took > keyGrace+10*time.Second {
			t.Errorf("%s hangs, and so did TryKey, for %v", path, took)
		}
		cancel()
		s.ClearFaults()
	}
}
