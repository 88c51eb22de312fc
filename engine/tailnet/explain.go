// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"golang.org/x/oauth2"
	tailscale "tailscale.com/client/tailscale/v2"
)

// credential is how errors name the credential for the API.
type credential struct {
	kind   string
	name   string
	remedy string // where it is refused
}

func credentialOf(cfg OAuthConfig) credential {
	if cfg.IDTokenFile != "" {
		return credential{
			kind:   "a federated identity",
			name:   "the federated identity",
			remedy: "check " + cfg.Names.ClientID + " and " + cfg.Names.IDTokenFile + " against the tailnet's federated identities (Settings, Trust credentials)",
		}
	}
	return credential{
		kind:   "an OAuth client",
		name:   "the OAuth client",
		remedy: "check " + cfg.Names.ClientID + " and " + cfg.Names.ClientSecret + " against the tailnet's OAuth clients (Settings, Trust credentials)",
	}
}

// explain makes an *Error of what a call ended with; the end of the caller's
// own context stays what it is.
func (o *OAuth) explain(ctx context.Context, op string, tags []string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", op, context.Cause(ctx))
	}
	var (
		refused *oauth2.RetrieveError
		answer  tailscale.APIError
		known   *Error
	)
	out := &Error{Op: op, Err: err}
	switch {
	case errors.Is(err, errPaused):
		o.explainLimit(out)
	case errors.Is(err, errQueue):
		out.Temporary = true
		out.Reason = "too many calls of our own wait for the API"
	case errors.As(err, &known):
		out.Reason, out.Remedy, out.Temporary = known.Reason, known.Remedy, known.Temporary
	case errors.As(err, &refused) && refused.Response != nil:
		o.explainToken(out, refused)
	case errors.As(err, &answer):
		o.explainAnswer(out, answer, tags)
	case strings.Contains(err.Error(), http.StatusText(http.StatusProxyAuthRequired)):
		// net/http has no type for it (transport.go, dialConn).
		out.Temporary = true
		out.Reason = "the HTTP proxy on the way to the API at " + o.baseURL + " refuses us (" + http.StatusText(http.StatusProxyAuthRequired) + ")"
		out.Remedy = "check the user and the password in " + o.names.Proxy
	default:
		out.Temporary = true
		out.Reason = "the API at " + o.baseURL + " cannot be reached"
	}
	return out
}

// explainToken explains an error of the call that fetches an access token.
func (o *OAuth) explainToken(out *Error, refused *oauth2.RetrieveError) {
	status := refused.Response.StatusCode
	switch {
	case status == http.StatusTooManyRequests:
		o.explainLimit(out)
	case status >= 500:
		o.explainOutage(out, status)
	default:
		out.Reason = fmt.Sprintf("the API at %s refuses %s (HTTP %d)", o.baseURL, o.credential.name, status)
		out.Remedy = o.credential.remedy
	}
}

// explainAnswer explains an error of the calls for keys and devices. The texts it looks for
// are those that Tailscale's API answers with.
func (o *OAuth) explainAnswer(out *Error, answer tailscale.APIError, tags []string) {
	switch {
	case answer.Status == http.StatusTooManyRequests:
		o.explainLimit(out)
	case answer.Status >= 500:
		o.explainOutage(out, answer.Status)
	case answer.Status == http.StatusUnauthorized:
		out.Reason = "the API at " + o.baseURL + " refuses the access token it gave to " + o.credential.name
		out.Remedy = o.credential.remedy
	case len(tags) > 0 && strings.Contains(answer.Message, "tag"):
		list := strings.Join(tags, ", ")
		out.Reason = fmt.Sprintf("%s may not use %s (%s)", o.credential.name, list, answer.Message)
		out.Remedy = "define each under tagOwners in the tailnet's policy file, and give " + o.credential.name + " in " + o.names.ClientID + " exactly these tags or one that owns them"
	case answer.Status == http.StatusForbidden:
		out.Reason = o.credential.name + " may not do this (" + answer.Message + ")"
		out.Remedy = "give " + o.credential.name + " in " + o.names.ClientID + " write access to the scopes auth_keys and devices:core"
	case answer.Status == http.StatusNotFound:
		out.Reason = "the API at " + o.baseURL + " does not know this tailnet (" + answer.Message + ")"
		out.Remedy = "check the tailnet's name and the API's URL"
	default:
		out.Reason = fmt.Sprintf("the API at %s answered HTTP %d (%s)", o.baseURL, answer.Status, answer.Message)
	}
}

// explainLimit says that the tailnet wants fewer calls.
func (o *OAuth) explainLimit(out *Error) {
	out.Temporary = true
	out.Reason = "the API at " + o.baseURL + " limits our calls"
	out.RetryAfter = o.calls.pauseLeft()
}

// explainOutage says that the API does not work.
func (o *OAuth) explainOutage(out *Error, status int) {
	out.Temporary = true
	out.Reason = fmt.Sprintf("the API at %s does not work (HTTP %d)", o.baseURL, status)
}
