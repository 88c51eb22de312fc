// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

// bearer is an http.RoundTripper that adds an access token.
//
// oauth2.Transport cannot be used: it fetches a token under a context of its own and a
// mutex, so one fetch that hangs holds every caller, whatever their contexts say.
// tailscale.IdentityFederation is built on it and exchanges tokens in the same way, past
// the limits of calls. So for workload identity, too, only the form of its request is
// taken over.
type bearer struct {
	calls  *calls
	log    *slog.Logger
	source tokenSource
	held   chan access // one element, what there is; taken while it is renewed
}

// tokenSource fetches an access token with the HTTP client in its context
// (oauth2.HTTPClient).
type tokenSource interface {
	Token(context.Context) (*oauth2.Token, error)
}

// earlyPatience bounds a renewal that could still wait.
const earlyPatience = 5 * time.Second

// access is an access token with the times from which it is to be renewed and
// not to be used; the zero value is none.
type access struct {
	token      *oauth2.Token
	renew, end time.Time
}

// newAccess spreads renewals over the time from 80 to 90 % of the token's life,
// since the plugins of all hosts may have started at the same instant.
func newAccess(token *oauth2.Token, now time.Time) access {
	life := time.Hour // what Tailscale documents, if the answer does not say
	if !token.Expiry.IsZero() {
		life = max(token.Expiry.Sub(now), 0)
	}
	return access{
		token: token,
		renew: now.Add(life*8/10 + rand.N(life/10+1)),
		end:   now.Add(life - min(life/20, 10*time.Second)), // it has to get there
	}
}

func newBearer(cfg OAuthConfig, c *calls) *bearer {
	b := &bearer{calls: c, log: cfg.Logger, held: make(chan access, 1)}
	if cfg.IDTokenFile != "" {
		b.source = &federation{cfg: cfg, calls: c}
	} else {
		b.source = &clientcredentials.Config{
			ClientID:     cfg.ClientID,
			ClientSecret: cfg.ClientSecret,
			TokenURL:     cfg.BaseURL + "/api/v2/oauth/token",
			AuthStyle:    oauth2.AuthStyleInHeader, // or a refusal is tried in both styles
			// No scopes: a token that asks for fewer than its client has also
			// loses the client's tags.
		}
	}
	b.held <- access{}
	return b
}

// RoundTrip implements http.RoundTripper. A token that is refused is replaced
// once: it may have been revoked, or the clocks differ.
func (b *bearer) RoundTrip(req *http.Request) (*http.Response, error) {
	for fresh := false; ; fresh = true {
		token, err := b.get(req.Context(), nil)
		if err != nil {
			return nil, err
		}
		authorized := req.Clone(req.Context())
		token.SetAuthHeader(authorized)
		res, err := b.calls.RoundTrip(authorized)
		if err != nil || res.StatusCode != http.StatusUnauthorized || fresh {
			return res, err
		}
		if _, err := b.get(req.Context(), token); err != nil {
			return nil, err
		}
		if req, err = rewind(req); err != nil {
			return nil, err
		}
	}
}

// get returns the token, and fetches one if there is none that lives or if the
// one there is the refused one. One that is to be renewed but still lives is
// used further if no other can be fetched.
func (b *bearer) get(ctx context.Context, refused *oauth2.Token) (*oauth2.Token, error) {
	var held access
	select {
	case held = <-b.held:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { b.held <- held }()
	now := time.Now()
	lives := held.token != nil && held.token != refused && now.Before(held.end)
	if lives && now.Before(held.renew) {
		return held.token, nil
	}
	if lives {
		short, cancel := context.WithTimeout(ctx, earlyPatience)
		defer cancel()
		ctx = short
	}
	token, err := b.source.Token(context.WithValue(ctx, oauth2.HTTPClient, b.client()))
	switch {
	case err == nil:
		held = newAccess(token, time.Now())
	case lives:
		b.log.Debug("using the API's access token on", "until", held.end, "err", err)
		held.renew = time.Now().Add(time.Until(held.end) / 4)
	default:
		held = access{}
		return nil, err
	}
	return held.token, nil
}

// client returns the HTTP client for fetching tokens. It does not send the credential on to where an answer
// redirects it.
func (b *bearer) client() *http.Client {
	return &http.Client{
		Transport:     b.calls,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
