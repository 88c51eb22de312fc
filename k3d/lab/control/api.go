// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"tailscale.com/util/rands"
)

// tokenLife is production's.
const tokenLife = time.Hour

// keyRequest is the body of a request for an auth key, as far as it counts here.
type keyRequest struct {
	Capabilities  keyCapabilities `json:"capabilities"`
	ExpirySeconds int64           `json:"expirySeconds"` // 0 is 90 days
	Description   string          `json:"description"`
}

type keyCapabilities struct {
	Devices struct {
		Create struct {
			Reusable      bool     `json:"reusable"`
			Ephemeral     bool     `json:"ephemeral"`
			Preauthorized bool     `json:"preauthorized"`
			Tags          []string `json:"tags"`
		} `json:"create"`
	} `json:"devices"`
}

// keyAnswer is an auth key as the API shows it; Key only when it is made.
type keyAnswer struct {
	ID           string          `json:"id"`
	Key          string          `json:"key,omitempty"`
	Description  string          `json:"description"`
	Created      time.Time       `json:"created"`
	Expires      time.Time       `json:"expires"`
	Invalid      bool            `json:"invalid"`
	Capabilities keyCapabilities `json:"capabilities"`
}

// tokens are the access tokens that were handed out, with their expiry.
type tokens struct {
	mu      sync.Mutex
	expires map[string]time.Time
	all     []string // also those that were revoked
}

func (t *tokens) mint(life time.Duration) string {
	token := "tskey-api-" + rands.HexString(32)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.expires == nil {
		t.expires = map[string]time.Time{}
	}
	t.expires[token] = time.Now().Add(life)
	t.all = append(t.all, token)
	return token
}

func (t *tokens) valid(token string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Now().Before(t.expires[token])
}

// RevokeTokens has the API refuse every access token it gave so far.
func (s *Server) RevokeTokens() {
	s.tokens.mu.Lock()
	defer s.tokens.mu.Unlock()
	clear(s.tokens.expires)
}

func (s *Server) startAPI() error {
	ln, addr, err := s.listen(s.cfg.APIPort)
	if err != nil {
		return err
	}
	s.apiAddr = addr
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/v2/oauth/token", s.token)
	mux.HandleFunc("POST /api/v2/oauth/token-exchange", s.exchange)
	mux.HandleFunc("POST /api/v2/tailnet/{tailnet}/keys", s.authorized(s.createKey))
	mux.HandleFunc("GET /api/v2/tailnet/{tailnet}/keys/{id}", s.authorized(s.getKey))
	mux.HandleFunc("DELETE /api/v2/tailnet/{tailnet}/keys/{id}", s.authorized(s.deleteKey))
	mux.HandleFunc("GET /api/v2/tailnet/{tailnet}/devices", s.authorized(s.listDevices))
	mux.HandleFunc("GET /api/v2/device/{id}", s.authorized(s.getDevice))
	mux.HandleFunc("DELETE /api/v2/device/{id}", s.authorized(s.deleteDevice))
	mux.HandleFunc("POST /api/v2/device/{id}/name", s.authorized(s.nameDevice))
	srv := &http.Server{Handler: s.inManner(s.faults.guard(mux))}
	s.serve(srv, ln)
	s.onClose(func() { srv.Close() })
	return nil
}

// apiError answers in the API's one form for errors, which startAPI may have
// wrapped w to change.
func apiError(w http.ResponseWriter, status int, message string) {
	if p, ok := w.(problemWriter); ok {
		p.problem(status, message)
		return
	}
	writeJSON(w, status, struct {
		Message string `json:"message"`
	}{message})
}

// token is OAuth's client credentials grant, the client named by basic auth or
// in the body.
func (s *Server) token(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, bodyLimit)
	id, secret, ok := r.BasicAuth()
	if !ok {
		id, secret = r.PostFormValue("client_id"), r.PostFormValue("client_secret")
	}
	if id != s.cfg.OAuthClientID || subtle.ConstantTimeCompare([]byte(secret), []byte(s.cfg.OAuthClientSecret)) != 1 {
		apiError(w, http.StatusUnauthorized, "API token invalid")
		return
	}
	if g := r.PostFormValue("grant_type"); g != "" && g != "client_credentials" {
		apiError(w, http.StatusBadRequest, "unsupported grant_type "+g)
		return
	}
	s.faults.counted(func(c *Counters) { c.Tokens++ })
	s.grant(w, s.cfg.TokenLife)
}

// grant answers with an access token that is good for all that there is here.
func (s *Server) grant(w http.ResponseWriter, life time.Duration) {
	writeJSON(w, http.StatusOK, map[string]any{
		"access_token": s.tokens.mint(life),
		"token_type":   "Bearer",
		"expires_in":   int(life.Seconds()),
		"scope":        "auth_keys devices:core",
	})
}

// authorized passes requests with a token that lives.
func (s *Server) authorized(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !s.tokens.valid(token) {
			s.faults.counted(func(c *Counters) { c.Stale++ })
			apiError(w, http.StatusUnauthorized, "API token invalid")
			return
		}
		next(w, r)
	}
}

func (s *Server) createKey(w http.ResponseWriter, r *http.Request) {
	var req keyRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, bodyLimit)).Decode(&req); err != nil {
		apiError(w, http.StatusBadRequest, "invalid request body: "+err.Error())
		return
	}
	if msg := s.refusal(&req); msg != "" {
		apiError(w, http.StatusBadRequest, msg)
		return
	}
	life := time.Duration(req.ExpirySeconds) * time.Second
	if life <= 0 {
		life = 90 * 24 * time.Hour
	}
	create := req.Capabilities.Devices.Create
	k := s.keys.mint(AuthKey{
		Reusable:      create.Reusable,
		Ephemeral:     create.Ephemeral,
		Preauthorized: create.Preauthorized,
		Tags:          create.Tags,
		Description:   req.Description,
		Expires:       time.Now().Add(life),
	})
	s.faults.counted(func(c *Counters) { c.KeysMinted++ })
	out := k.answer()
	out.Key = k.secret
	writeJSON(w, http.StatusOK, out)
}

// refusal is why production would not make such a key; "" if it would.
func (s *Server) refusal(req *keyRequest) string {
	tags := req.Capabilities.Devices.Create.Tags
	if len(tags) == 0 {
		return "tailnet-owned auth key must have tags set"
	}
	for _, tag := range tags {
		if !strings.HasPrefix(tag, "tag:") || len(s.cfg.Tags) > 0 && !slices.Contains(s.cfg.Tags, tag) {
			return fmt.Sprintf("requested tags [%s] are invalid or not permitted", strings.Join(tags, " "))
		}
	}
	if len(req.Description) > 50 {
		return "description is too long, must be 50 characters or less"
	}
	if strings.ContainsFunc(req.Description, badInDescription) {
		return "description contains invalid characters"
	}
	return ""
}

func badInDescription(r rune) bool {
	ok := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == ' '
	return !ok
}

func (k AuthKey) answer() keyAnswer {
	out := keyAnswer{ID: k.ID, Description: k.Description, Created: k.Created, Expires: k.Expires}
	out.Invalid = time.Now().After(k.Expires) || !k.Reusable && !k.UsedBy.IsZero()
	create := &out.Capabilities.Devices.Create
	create.Reusable, create.Ephemeral, create.Tags = k.Reusable, k.Ephemeral, k.Tags
	create.Preauthorized = k.Preauthorized
	return out
}

func (s *Server) getKey(w http.ResponseWriter, r *http.Request) {
	if k, ok := s.keys.get(r.PathValue("id")); ok {
		writeJSON(w, http.StatusOK, k.answer())
		return
	}
	apiError(w, http.StatusNotFound, "not found")
}

func (s *Server) deleteKey(w http.ResponseWriter, r *http.Request) {
	if !s.keys.revoke(r.PathValue("id")) {
		apiError(w, http.StatusNotFound, "not found")
	}
}
