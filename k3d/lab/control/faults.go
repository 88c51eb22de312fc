// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"context"
	"net/http"
	"strings"
	"sync"
)

// Outage is a way in which the control plane is away. DERP, STUN and the API
// stay.
type Outage int

const (
	// Up means that there is no outage.
	Up Outage = iota
	// Hanging accepts connections and requests and answers none; polls that
	// are open stay open and fall silent.
	Hanging
	// Refusing closes the port and cuts what is connected.
	Refusing
)

// outage is the switch that requests pass.
type outage struct {
	mu      sync.Mutex
	mode    Outage
	changed chan struct{} // closed and replaced at each change; nil until the first wait
}

// SetOutage takes the control plane away or brings it back, at the same port.
// Its error is that of listening again.
func (s *Server) SetOutage(o Outage) error {
	was := s.outage.set(o)
	switch {
	case o == Refusing && was != Refusing:
		s.stopFront()
	case o != Refusing && was == Refusing:
		return s.startFront()
	}
	return nil
}

func (o *outage) set(mode Outage) (was Outage) {
	o.mu.Lock()
	defer o.mu.Unlock()
	was, o.mode = o.mode, mode
	if o.changed != nil {
		close(o.changed)
		o.changed = nil
	}
	return was
}

// wait returns once the control plane does not hang, or with ctx's error.
func (o *outage) wait(ctx context.Context) error {
	for {
		o.mu.Lock()
		if o.mode != Hanging {
			o.mu.Unlock()
			return ctx.Err()
		}
		if o.changed == nil {
			o.changed = make(chan struct{})
		}
		changed := o.changed
		o.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// guard holds requests back during an outage.
func (o *outage) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if o.wait(r.Context()) == nil {
			next.ServeHTTP(w, r)
		}
	})
}

// denial is the control plane's answer to all map requests.
type denial struct {
	status int
	text   string
}

// RefuseNodes has the control plane answer all map requests with an HTTP status and a
// text, until it is called with 0. Polls that are open go on.
func (s *Server) RefuseNodes(status int, text string) {
	if status == 0 {
		s.denial.Store(nil)
		return
	}
	s.denial.Store(&denial{status, text})
}

// Fault is an answer that the API gives instead of the right one.
type Fault struct {
	// Path is the beginning of the paths it hits, as "/api/v2/oauth/"; "" hits
	// all.
	Path string

	// Hang keeps the request until the caller gives up or the fault is cleared;
	// the other fields then do not matter.
	Hang bool

	Status     int    // HTTP status
	Message    string // the "message" of the answer
	RetryAfter string // Retry-After header, seconds or HTTP date; "" sends none

	// Times is how many requests it hits; 0 means all until it is cleared.
	Times int
}

// Counters count what the API was asked, with all that it refused.
type Counters struct {
	Calls          int // all requests
	Tokens         int // access tokens handed out for the OAuth client's secret
	Exchanges      int // access tokens handed out for an issuer's token
	NotExchanged   int // issuers' tokens that were refused
	Stale          int // requests whose access token had ended, was revoked or never was
	KeysMinted     int
	DevicesDeleted int
	DevicesRenamed int
	MaxInFlight    int // most requests at one time
}

// faults holds the API's faults and counters.
type faults struct {
	mu       sync.Mutex
	active   []*Fault
	cleared  chan struct{} // closed by clear
	count    Counters
	inFlight int
	entered  chan struct{} // closed and replaced at each request; nil until awaited
}

// AddFault has the API answer with f. Of several that match, the one added
// first wins.
func (s *Server) AddFault(f Fault) {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.active = append(s.faults.active, &f)
}

// ClearFaults makes the API well again; requests that hang go on.
func (s *Server) ClearFaults() {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.active = nil
	if s.faults.cleared != nil {
		close(s.faults.cleared)
		s.faults.cleared = nil
	}
}

// Counters returns the API's counters since the start.
func (s *Server) Counters() Counters {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	return s.faults.count
}

// AwaitCalls returns once the API has got n requests since the start, answered
// or not. The error is ctx's.
func (s *Server) AwaitCalls(ctx context.Context, n int) error {
	f := &s.faults
	for {
		f.mu.Lock()
		if f.count.Calls >= n {
			f.mu.Unlock()
			return nil
		}
		if f.entered == nil {
			f.entered = make(chan struct{})
		}
		entered := f.entered
		f.mu.Unlock()
		select {
		case <-entered:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// counted adds to the counters.
func (f *faults) counted(add func(*Counters)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	add(&f.count)
}

// take finds the fault for a path, spends one of its times, and returns a
// channel that is closed when faults are cleared.
func (f *faults) take(path string) (*Fault, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cleared == nil {
		f.cleared = make(chan struct{})
	}
	for i, fault := range f.active {
		if !strings.HasPrefix(path, fault.Path) {
			continue
		}
		hit := *fault
		if fault.Times > 0 {
			if fault.Times--; fault.Times == 0 {
				f.active = append(f.active[:i:i], f.active[i+1:]...)
			}
		}
		return &hit, f.cleared
	}
	return nil, f.cleared
}

// guard counts requests and answers those that a fault hits.
func (f *faults) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.enter()
		defer f.leave()
		fault, cleared := f.take(r.URL.Path)
		if fault != nil && fault.Hang {
			select {
			case <-cleared:
				fault = nil
			case <-r.Context().Done():
				return
			}
		}
		if fault == nil {
			next.ServeHTTP(w, r)
			return
		}
		if fault.RetryAfter != "" {
			w.Header().Set("Retry-After", fault.RetryAfter)
		}
		apiError(w, fault.Status, fault.Message)
	})
}

func (f *faults) enter() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count.Calls++
	f.inFlight++
	f.count.MaxInFlight = max(f.count.MaxInFlight, f.inFlight)
	if f.entered != nil {
		close(f.entered)
		f.entered = nil
	}
}

func (f *faults) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inFlight--
}
