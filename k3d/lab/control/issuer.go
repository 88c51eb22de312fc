// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Issuer is a federated identity of the tailnet: a client of the API that has no
// secret, but tokens of an OpenID Connect issuer. A Kubernetes API server is
// one, for its ServiceAccounts.
type Issuer struct {
	// ClientID is the identity's name at the API.
	ClientID string

	// URL is what the tokens' "iss" must be.
	URL string

	// JWKS is the issuer's set of public keys, as
	// "kubectl get --raw /openid/v1/jwks" shows it.
	JWKS json.RawMessage `json:",omitempty"`

	// JWKSURL is where they are fetched, now and whenever a token names a key
	// that is not among them. Either it is set, or JWKS.
	JWKSURL string

	// CA is the certificates, in PEM, that vouch for JWKSURL; "" is the
	// system's.
	CA string

	// Audience must be among a token's "aud"; "" is production's default,
	// "api.tailscale.com/" and the ClientID.
	Audience string

	// Subject is what "sub" must be. As in production a * in it stands for any
	// characters.
	Subject string

	// TokenLife is how long the access tokens live; 0 is Config's.
	TokenLife time.Duration
}

// jwksPatience bounds the fetch of an issuer's keys.
const jwksPatience = 10 * time.Second

// algorithms are those that Kubernetes signs with.
var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.ES256}

// issuers are the federated identities that there are.
type issuers struct {
	mu       sync.Mutex
	byClient map[string]*verifier
}

// TrustIssuer has the API take an issuer's tokens. It replaces what was trusted
// under the same ClientID. Its error is about i, or about fetching the keys.
func (s *Server) TrustIssuer(i Issuer) error {
	v, err := newVerifier(s.ctx, i, s.cfg.TokenLife)
	if err != nil {
		return fmt.Errorf("trusting issuer %q: %w", i.URL, err)
	}
	s.issuers.mu.Lock()
	defer s.issuers.mu.Unlock()
	if s.issuers.byClient == nil {
		s.issuers.byClient = map[string]*verifier{}
	}
	s.issuers.byClient[i.ClientID] = v
	s.log.Info("issuer trusted", "client", i.ClientID, "issuer", i.URL, "audience", v.Audience, "subject", i.Subject)
	return nil
}

// identify checks a token that is said to be a client's.
func (s *Server) identify(ctx context.Context, clientID, token string) (*verifier, error) {
	s.issuers.mu.Lock()
	v := s.issuers.byClient[clientID]
	s.issuers.mu.Unlock()
	if v == nil {
		return nil, errors.New("there is no such client")
	}
	return v, v.verify(ctx, token)
}

// exchange gives an access token for an issuer's token.
//
// What production answers to a refused one is not documented. Its answer to a
// wrong subject is quoted in tailscale/github-action issue 227: 403 and
// "Unauthorized", which does not say what was wrong. That it is so for the
// rest, and 400 for what is not a request at all, is a guess. What was wrong is in
// the log here.
func (s *Server) exchange(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, bodyLimit)
	id, token := r.PostFormValue("client_id"), r.PostFormValue("jwt")
	if id == "" || token == "" {
		apiError(w, http.StatusBadRequest, "client_id and jwt are required")
		return
	}
	v, err := s.identify(r.Context(), id, token)
	if err != nil {
		s.log.Info("refused an issuer's token", "client", id, "reason", err)
		s.faults.counted(func(c *Counters) { c.NotExchanged++ })
		apiError(w, http.StatusForbidden, "Unauthorized")
		return
	}
	s.faults.counted(func(c *Counters) { c.Exchanges++ })
	s.grant(w, v.TokenLife)
}

// verifier checks tokens of one issuer.
type verifier struct {
	Issuer
	subject *regexp.Regexp
	client  *http.Client // nil with a set of keys that stays as it is

	mu   sync.Mutex
	keys jose.JSONWebKeySet
}

// newVerifier checks i, fills in its defaults and gets the keys.
func newVerifier(ctx context.Context, i Issuer, life time.Duration) (*verifier, error) {
	switch {
	case i.ClientID == "" || i.URL == "" || i.Subject == "":
		return nil, errors.New("set ClientID, URL and Subject")
	case (len(i.JWKS) == 0) == (i.JWKSURL == ""):
		return nil, errors.New("set JWKS or JWKSURL")
	}
	i.Audience = cmp.Or(i.Audience, "api.tailscale.com/"+i.ClientID)
	i.TokenLife = cmp.Or(i.TokenLife, life)
	pattern := strings.ReplaceAll(regexp.QuoteMeta(i.Subject), `\*`, ".*")
	v := &verifier{Issuer: i, subject: regexp.MustCompile("^(?s:" + pattern + ")$")} // what is quoted always compiles
	if i.JWKSURL == "" {
		return v, v.setKeys(i.JWKS)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	if i.CA != "" {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM([]byte(i.CA)) {
			return nil, errors.New("CA has no certificate")
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	v.client = &http.Client{Transport: transport, Timeout: jwksPatience}
	return v, v.fetchKeys(ctx)
}

func (v *verifier) fetchKeys(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, v.JWKSURL, nil)
	if err != nil {
		return fmt.Errorf("fetching its keys: %w", err)
	}
	res, err := v.client.Do(req)
	if err != nil {
		return fmt.Errorf("fetching its keys: %w", err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, bodyLimit))
	if err != nil {
		return fmt.Errorf("fetching its keys from %s: %w", v.JWKSURL, err)
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("fetching its keys from %s: %s", v.JWKSURL, res.Status)
	}
	return v.setKeys(body)
}

// setKeys takes public keys only: a caller that hands over another has mistaken
// one file for another.
func (v *verifier) setKeys(jwks []byte) error {
	var keys jose.JSONWebKeySet
	if err := json.Unmarshal(jwks, &keys); err != nil {
		return fmt.Errorf("reading its keys: %w", err)
	}
	if len(keys.Keys) == 0 || slices.ContainsFunc(keys.Keys, func(k jose.JSONWebKey) bool { return !k.Valid() || !k.IsPublic() }) {
		return errors.New("reading its keys: they are no set of public keys")
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.keys = keys
	return nil
}

func (v *verifier) publicKeys() jose.JSONWebKeySet {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.keys
}

// verify says why a token is not good, nil if it is. The clocks of issuer and
// tailnet are taken to be the same.
func (v *verifier) verify(ctx context.Context, token string) error {
	parsed, err := jwt.ParseSigned(token, algorithms)
	if err != nil {
		return fmt.Errorf("parsing it: %w", err)
	}
	var claims jwt.Claims
	err = parsed.Claims(v.publicKeys(), &claims)
	if errors.Is(err, jose.ErrJWKSKidNotFound) && v.client != nil {
		if err := v.fetchKeys(ctx); err != nil {
			return err
		}
		err = parsed.Claims(v.publicKeys(), &claims)
	}
	if err != nil {
		return fmt.Errorf("checking its signature: %w", err)
	}
	if claims.Expiry == nil {
		return errors.New("it never expires")
	}
	expected := jwt.Expected{Issuer: v.URL, AnyAudience: jwt.Audience{v.Audience}}
	if err := claims.ValidateWithLeeway(expected, 0); err != nil {
		return fmt.Errorf("checking its claims, issuer %q, audience %q: %w", claims.Issuer, claims.Audience, err)
	}
	if !v.subject.MatchString(claims.Subject) {
		return fmt.Errorf("its subject is %q, not %q", claims.Subject, v.Subject)
	}
	return nil
}
