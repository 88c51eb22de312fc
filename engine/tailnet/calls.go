// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxAnswer bounds an answer's body, in bytes; a device in a list is about 1 kB.
const maxAnswer = 64 << 20

// CallLimits bounds calls to an API whose own limits are not published. Zero
// values are the defaults.
type CallLimits struct {
	PerSecond   float64       // sustained rate, 10
	Burst       int           // calls at once after a pause, 20
	InFlight    int           // calls under way at a time, 8
	Attempts    int           // tries of one call, 4; then the caller gets the error
	Backoff     time.Duration // before the second try, 500 ms; doubled each time, and jittered
	MaxWait     time.Duration // longest wait between tries, 30 s; what asks for more ends the call
	CallTimeout time.Duration // for one try, 20 s
}

func (l *CallLimits) setDefaults() {
	l.PerSecond = cmp.Or(l.PerSecond, 10)
	l.Burst = cmp.Or(l.Burst, 20)
	l.InFlight = cmp.Or(l.InFlight, 8)
	l.Attempts = cmp.Or(l.Attempts, 4)
	l.Backoff = cmp.Or(l.Backoff, 500*time.Millisecond)
	l.MaxWait = cmp.Or(l.MaxWait, 30*time.Second)
	l.CallTimeout = cmp.Or(l.CallTimeout, 20*time.Second)
}

// calls is an http.RoundTripper that limits calls, and repeats those that may
// succeed later: after 429, 5xx and a network that fails. A key that was minted by a try
// whose answer got lost is never used, and expires.
type calls struct {
	CallLimits
	base   http.RoundTripper
	rate   *rate.Limiter
	slots  chan struct{}
	log    *slog.Logger
	counts callCounts

	mu    sync.Mutex
	until time.Time     // the API asked all callers to pause until then
	ahead time.Duration // by how much the API's clock leads this host's, as of its last answer
}

func newCalls(cfg OAuthConfig) *calls {
	l := cfg.Calls
	l.setDefaults()
	return &calls{
		CallLimits: l,
		base:       cfg.Transport,
		rate:       rate.NewLimiter(rate.Limit(l.PerSecond), l.Burst),
		slots:      make(chan struct{}, l.InFlight),
		log:        cfg.Logger,
	}
}

// Calls that were not made.
var (
	errPaused = errors.New("the API asked for a longer pause than a call may wait")
	errQueue  = errors.New("the plugin's own limit of calls would delay this one past its deadline")
)

// RoundTrip implements http.RoundTripper. The answer's body is in memory.
func (c *calls) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	for attempt := 1; ; attempt++ {
		if err := c.admit(ctx); err != nil {
			return nil, err
		}
		res, err := c.once(req)
		c.counts.count(req, res, err)
		wait, again := c.verdict(attempt, res, err)
		if !again || ctx.Err() != nil {
			return res, err
		}
		c.log.Debug("calling the API again", "path", req.URL.Path, "attempt", attempt, "wait", wait, "err", cause(res, err))
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
		if req, err = rewind(req); err != nil {
			return nil, err
		}
	}
}

// admit waits until the API may be called: for the end of a pause that it asked
// for, and for the limit of this process.
func (c *calls) admit(ctx context.Context) error {
	if wait := c.pauseLeft(); wait > c.MaxWait {
		return errPaused
	} else if err := sleep(ctx, wait); err != nil {
		return err
	}
	if err := c.rate.Wait(ctx); ctx.Err() != nil {
		return ctx.Err()
	} else if err != nil {
		return errQueue
	}
	return nil
}

// pauseLeft returns for how long the API still asks not to be called.
func (c *calls) pauseLeft() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(time.Until(c.until), 0)
}

// once makes one try. A slot covers the whole of it, with the body.
func (c *calls) once(req *http.Request) (*http.Response, error) {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
	ctx, cancel := context.WithTimeout(req.Context(), c.CallTimeout)
	defer cancel()
	res, err := c.base.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	c.compareClocks(res.Header.Get("Date"), time.Now())
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	if res.StatusCode >= 400 {
		body = asMessage(body)
	}
	res.Body = io.NopCloser(bytes.NewReader(body))
	res.ContentLength = int64(len(body))
	return res, nil
}

// compareClocks notes what an answer's Date header says of the API's clock.
func (c *calls) compareClocks(date string, now time.Time) {
	at, err := http.ParseTime(date)
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead = at.Sub(now)
	if c.ahead.Abs() < 2*time.Second {
		c.ahead = 0 // the header counts seconds, and has travelled
	}
}

// ourTime turns a time of the API's into one of this host's clock.
func (c *calls) ourTime(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return t.Add(-c.ahead)
}

// asMessage gives an error of another form that of the API's own: a problem of RFC
// 9457 (once RFC 7807), as Headscale answers with, or an answer that is not JSON.
func asMessage(body []byte) []byte {
	var problem struct{ Message, Title, Detail string }
	if json.Unmarshal(body, &problem) != nil {
		if json.Valid(body) {
			return body
		}
		return plainError(body)
	}
	if text := cmp.Or(problem.Detail, problem.Title); problem.Message == "" && text != "" {
		return plainError([]byte(text))
	}
	return body
}

// plainError gives a proxy's page the form of the API's own errors, or the
// client would complain about the form and lose the status.
func plainError(page []byte) []byte {
	text := strings.Join(strings.Fields(string(page)), " ")
	body, _ := json.Marshal(map[string]string{"message": text[:min(len(text), 200)]}) // a map of strings always encodes
	return body
}

// verdict says whether a try is to be followed by another, and when.
func (c *calls) verdict(attempt int, res *http.Response, err error) (wait time.Duration, again bool) {
	wait = c.backoff(attempt)
	if err == nil {
		if res.StatusCode != http.StatusTooManyRequests && res.StatusCode < 500 {
			return 0, false
		}
		if asked, ok := retryAfter(res.Header.Get("Retry-After"), time.Now()); ok {
			c.pause(asked)
			if asked > c.MaxWait {
				return 0, false
			}
			wait = rand.N(c.Backoff + 1) // admit waits, for all; this spreads what comes after
		}
	}
	return wait, attempt < c.Attempts
}

// backoff doubles with each attempt, up to MaxWait, and is spread from half to
// the whole of that: many nodes fail at the same instant.
func (c *calls) backoff(attempt int) time.Duration {
	d := c.Backoff
	for range attempt - 1 {
		if d *= 2; d > c.MaxWait {
			break
		}
	}
	d = min(d, c.MaxWait)
	return d/2 + rand.N(d/2+1)
}

// pause keeps all calls away for d.
func (c *calls) pause(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if until := time.Now().Add(d); until.After(c.until) {
		c.until = until
	}
}

// retryAfter reads the header's two forms, seconds and an HTTP date (RFC 9110,
// section 10.2.3). A date that has passed is no wait at all.
func retryAfter(value string, now time.Time) (time.Duration, bool) {
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second, true
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(at.Sub(now), 0), true
	}
	return 0, false
}

// rewind prepares req for another try.
func rewind(req *http.Request) (*http.Request, error) {
	if req.Body == nil || req.Body == http.NoBody {
		return req, nil
	}
	if req.GetBody == nil {
		return nil, errors.New("the request's body cannot be sent again")
	}
	body, err := req.GetBody()
	if err != nil {
		return nil, fmt.Errorf("sending the request's body again: %w", err)
	}
	req = req.Clone(req.Context())
	req.Body = body
	return req, nil
}

// cause returns the outcome of a try, for the log.
func cause(res *http.Response, err error) string {
	if err != nil {
		return err.Error()
	}
	return res.Status
}

// sleep returns after d, or with ctx's error.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
