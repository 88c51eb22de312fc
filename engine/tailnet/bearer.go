// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"context"
	"net/http"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

// bearer is an http.RoundTripper that adds an OAuth access token.
//
// oauth2.Transport would do, but for one thing: it fetches a token under a
// context of its own and a mutex, so one fetch that hangs holds every caller,
// whatever their contexts say.
type bearer struct {
	calls  *calls
	source clientcredentials.Config
	token  chan *oauth2.Token // one element: the token, nil if there is none; taken while it is fetched
}

func newBearer(cfg OAuthConfig, c *calls) *bearer {
	b := &bearer{
		calls: c,
		source: clientcredentials.Config{
			ClientID:     cfg.ClientID,
			ClientSecret: cfg.ClientSecret,
			TokenURL:     cfg.BaseURL + "/api/v2/oauth/token",
			AuthStyle:    oauth2.AuthStyleInHeader, // or a refusal is tried in both styles
			// No scopes: a token that asks for fewer than its client has also
			// loses the client's tags.
		},
		token: make(chan *oauth2.Token, 1),
	}
	b.token <- nil
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
// one there is the refused one.
func (b *bearer) get(ctx context.Context, refused *oauth2.Token) (*oauth2.Token, error) {
	var token *oauth2.Token
	select {
	case token = <-b.token:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if token.Valid() && token != refused {
		b.token <- token
		return token, nil
	}
	ctx = context.WithValue(ctx, oauth2.HTTPClient, &http.Client{Transport: b.calls})
	token, err := b.source.Token(ctx)
	if err != nil {
		b.token <- nil
		return nil, err
	}
	b.token <- token
	return token, nil
}
