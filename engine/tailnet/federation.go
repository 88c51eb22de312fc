// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

// maxIDToken bounds a file with an identity token, in bytes; a ServiceAccount's
// is about 1 kB.
const maxIDToken = 16 << 10

const opExchange = "exchanging the identity token"

// federation gets access tokens for a federated identity. Instead of a secret it
// sends the API the token in a file, which the platform keeps fresh: a
// ServiceAccount's token, which the kubelet replaces after 80 % of its life. So the
// file is read for each exchange.
type federation struct {
	cfg   OAuthConfig
	calls *calls
}

// Token exchanges the identity token. Errors are *Error where the token or its
// file is at fault.
//
// The form is what tailscale.com/client/tailscale/v2 sends, client_id and jwt,
// and the answer that of the client credentials grant. An empty grant_type
// leaves the field out.
func (f *federation) Token(ctx context.Context) (*oauth2.Token, error) {
	id, err := readIDToken(f.cfg.IDTokenFile)
	if err != nil {
		return nil, f.unreadable(err)
	}
	grant := clientcredentials.Config{
		ClientID:       f.cfg.ClientID,
		TokenURL:       f.cfg.BaseURL + "/api/v2/oauth/token-exchange",
		AuthStyle:      oauth2.AuthStyleInParams,
		EndpointParams: url.Values{"jwt": {id.text}, "grant_type": nil},
	}
	token, err := grant.Token(ctx)
	var refused *oauth2.RetrieveError
	if !errors.As(err, &refused) || refused.Response == nil {
		return token, err
	}
	if status := refused.Response.StatusCode; status == http.StatusTooManyRequests || status >= 500 {
		return nil, err
	}
	return nil, f.refused(id, refused)
}

// audience is the one that Tailscale gives a federated identity by default.
func (f *federation) audience() string { return "api.tailscale.com/" + f.cfg.ClientID }

// unreadable says what to do about the file.
func (f *federation) unreadable(err error) *Error {
	return &Error{
		Op:     opExchange,
		Reason: "the identity token in " + f.cfg.Names.IDTokenFile + " cannot be read: " + err.Error(),
		Remedy: "let " + f.cfg.Names.IDTokenFile + " name the file of a projected volume with a serviceAccountToken for the audience " + f.audience(),
		Err:    err,
	}
}

// refused says why the API may have refused a token. It does not say itself: in
// tailscale/github-action issue 227 a wrong subject is answered with 403 and
// "Unauthorized". The token's claims are not secret, and an admin has to
// compare them.
func (f *federation) refused(t idToken, err *oauth2.RetrieveError) *Error {
	e := &Error{Op: opExchange, Err: err}
	from := "the API at " + f.cfg.BaseURL + " refuses the identity token in " + f.cfg.Names.IDTokenFile +
		" (" + f.cfg.IDTokenFile + ", HTTP " + strconv.Itoa(err.Response.StatusCode) + ")"
	if end := time.Unix(int64(t.Expiry), 0); t.Expiry > 0 && f.calls.ourTime(end).Before(time.Now()) {
		e.Temporary = true
		e.Reason = from + ", which has expired at " + end.UTC().Format(time.RFC3339)
		e.Remedy = "see that the file is renewed: the kubelet does so for a projected volume that is mounted as a whole, not by subPath, while it reaches the API server"
		return e
	}
	e.Reason = fmt.Sprintf("%s, whose issuer is %q, subject %q, audience %q", from, t.Issuer, t.Subject, []string(t.Audience))
	e.Remedy = fmt.Sprintf("compare them with the issuer, subject and audience of the federated identity %s in the admin console (Settings, Trust credentials), "+
		"and see that the issuer's keys can be fetched from the internet", f.cfg.ClientID)
	if !slices.Contains(t.Audience, f.audience()) {
		e.Remedy += "; unless it was given another, its audience is " + f.audience()
	}
	return e
}

// idToken is a JWT with those of its claims that the API compares. Whether it is
// genuine is for the API to find out.
type idToken struct {
	text     string
	Issuer   string   `json:"iss"`
	Subject  string   `json:"sub"`
	Audience audience `json:"aud"`
	Expiry   float64  `json:"exp"` // seconds since 1970
}

// audience holds one text or several (RFC 7519, section 4.1.3).
type audience []string

// UnmarshalJSON implements json.Unmarshaler.
func (a *audience) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*a = audience{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(a))
}

var jwtForm = regexp.MustCompile(`^[\w-]+\.([\w-]+)\.[\w-]+$`)

// readIDToken reads a token. Errors name path, and nothing of what is in it.
func readIDToken(path string) (idToken, error) {
	text, err := readSmall(path)
	if err != nil {
		return idToken{}, err
	}
	if text == "" {
		return idToken{}, fmt.Errorf("%s is empty", path)
	}
	errForm := fmt.Errorf("%s holds no JSON Web Token", path)
	parts := jwtForm.FindStringSubmatch(text)
	if parts == nil {
		return idToken{}, errForm
	}
	claims, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return idToken{}, errForm
	}
	token := idToken{text: text}
	if json.Unmarshal(claims, &token) != nil {
		return idToken{}, errForm
	}
	return token, nil
}

// readSmall reads a file without the space around its text. Anything but a regular file
// is not opened: reading a pipe could take forever.
func readSmall(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a regular file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxIDToken+1))
	if err != nil {
		return "", err
	}
	if len(text) > maxIDToken {
		return "", fmt.Errorf("%s has more than %d bytes", path, maxIDToken)
	}
	return strings.TrimSpace(string(text)), nil
}
