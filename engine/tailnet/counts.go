// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"net/http"
	"strings"
	"sync"
)

// Call is a kind of call to the API, and how it ended.
type Call struct {
	Operation string // one of Operations
	Result    string // one of Results
}

// Operations are the kinds of calls to the API.
var Operations = []string{opToken, opMint, opRevoke, opList, opGet, opDelete, opRename, opOther}

// Results are how a call may end: with what was asked for; with the answer that
// there is no such thing; too soon after others (429); with another refusal (4xx);
// with a fault of the API's (5xx); without an answer.
var Results = []string{"ok", "not_found", "throttled", "refused", "failed", "unanswered"}

const (
	opToken  = "token"
	opMint   = "mint_key"
	opRevoke = "revoke_key"
	opList   = "list_devices"
	opGet    = "get_device"
	opDelete = "delete_device"
	opRename = "rename_device"
	opOther  = "other"
)

// KeyMinted is the call that has made an auth key.
var KeyMinted = Call{opMint, "ok"}

// callCounts counts calls. Its zero value is ready to use, concurrently.
type callCounts struct {
	mu sync.Mutex
	of map[Call]uint64
}

// count takes in one try of a call.
func (c *callCounts) count(req *http.Request, res *http.Response, err error) {
	call := Call{operationOf(req), resultOf(res, err)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = map[Call]uint64{}
	}
	c.of[call]++
}

// Calls returns how often the API was called, each try counted. The access
// token's requests are among them.
func (o *OAuth) Calls() map[Call]uint64 {
	c := &o.calls.counts
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[Call]uint64, len(c.of))
	for call, n := range c.of {
		out[call] = n
	}
	return out
}

// operationOf reads what is asked for out of method and path, which are
// Tailscale's (client/tailscale/v2) and Headscale's alike.
func operationOf(req *http.Request) string {
	path := strings.TrimSuffix(req.URL.Path, "/")
	switch {
	case strings.Contains(path, "/oauth/"):
		return opToken
	case strings.HasSuffix(path, "/keys") && req.Method == http.MethodPost:
		return opMint
	case strings.Contains(path, "/keys/") && req.Method == http.MethodDelete:
		return opRevoke
	case strings.HasSuffix(path, "/devices"):
		return opList
	case strings.Contains(path, "/device/") && strings.HasSuffix(path, "/name"):
		return opRename
	case strings.Contains(path, "/device/") && req.Method == http.MethodDelete:
		return opDelete
	case strings.Contains(path, "/device/") && req.Method == http.MethodGet:
		return opGet
	}
	return opOther
}

func resultOf(res *http.Response, err error) string {
	switch {
	case err != nil:
		return "unanswered"
	case res.StatusCode == http.StatusNotFound:
		return "not_found"
	case res.StatusCode == http.StatusTooManyRequests:
		return "throttled"
	case res.StatusCode >= 500:
		return "failed"
	case res.StatusCode >= 400:
		return "refused"
	}
	return "ok"
}
