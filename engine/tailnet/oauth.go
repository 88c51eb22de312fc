// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	tailscale "tailscale.com/client/tailscale/v2"
)

// maxDescriptionLen is the bound that Tailscale's API documents for a key's
// description.
const maxDescriptionLen = 50

// OAuthConfig says how to reach a tailnet's API. Only the client's ID is
// required, and one of what proves it: the secret of an OAuth client, or the
// token of a federated identity (workload identity). URLs, tags and AuthKeyTTL are
// taken as they are: the caller, who knows which setting each has come from, checks
// them.
type OAuthConfig struct {
	ClientID     string
	ClientSecret string `json:"-"`
	IDTokenFile  string // a file that is kept fresh, a projected ServiceAccount token

	BaseURL    string // of the API; "" is https://api.tailscale.com
	ControlURL string // the login server; "" is Tailscale's own
	Tailnet    string // "" is "-", the client's own

	// Cluster is part of the mark on this cluster's devices: see OAuth.LockKey.
	// "" marks none, and recognises none. Clusters that share an OAuth
	// client must differ in it, or each takes the other's devices for its own.
	Cluster string

	// Tags go to nodes that bring none. A key that an OAuth client makes must
	// have a tag, since no user owns the node.
	Tags []string

	// AuthKeyTTL is how long a minted key works; 0 is 5 min. The API counts
	// seconds: 1 s at least, 90 days at most.
	AuthKeyTTL time.Duration

	// KeysAhead is how many keys are minted ahead of each kind that nodes have had
	// lately (set of tags, ephemeral or not), while OAuth.Prepare runs; 0 is none.
	KeysAhead int

	// Calls bounds the calls to the API by this process.
	Calls CallLimits

	Names Names // of these settings, for errors

	Logger    *slog.Logger      // nil drops what is logged: retries, at level debug
	Transport http.RoundTripper // nil is http.DefaultTransport
}

// String keeps the secret out of logs.
func (c OAuthConfig) String() string {
	return fmt.Sprintf("{ClientID:%s ClientSecret:(secret) IDTokenFile:%s BaseURL:%s ControlURL:%s Tailnet:%s Cluster:%s Tags:%v AuthKeyTTL:%v}",
		c.ClientID, c.IDTokenFile, c.BaseURL, c.ControlURL, c.Tailnet, c.Cluster, c.Tags, c.AuthKeyTTL)
}

// OAuth lets nodes in with keys that Tailscale's API mints for an OAuth client or a
// federated identity: single-use, preauthorized and tagged. A key is ephemeral only if
// the node is to be: an ephemeral node that is cut off for a while is deleted, and comes
// back as another device.
//
// The client needs the scopes auth_keys and devices:core, and to be allowed each
// tag.
type OAuth struct {
	controlURL string
	baseURL    string
	credential credential
	names      Names
	tags       []string
	ttl        time.Duration
	mark       mark
	calls      *calls
	bearer     *bearer
	ahead      *ahead
	api        *tailscale.Client
}

var (
	_ Tailnet   = (*OAuth)(nil)
	_ DeviceAPI = (*OAuth)(nil)
)

// NewOAuth does not ask the API: an access token is fetched at the first call that
// needs one, and kept until it expires. Its error says what cfg lacks.
func NewOAuth(cfg OAuthConfig) (*OAuth, error) {
	switch {
	case cfg.ClientID == "":
		return nil, errors.New("tailnet.OAuthConfig.ClientID is not set")
	case (cfg.ClientSecret == "") == (cfg.IDTokenFile == ""):
		return nil, errors.New("tailnet.OAuthConfig needs one of ClientSecret and IDTokenFile")
	}
	cfg.BaseURL = strings.TrimSuffix(cmp.Or(cfg.BaseURL, "https://api.tailscale.com"), "/")
	cfg.AuthKeyTTL = cmp.Or(cfg.AuthKeyTTL, 5*time.Minute)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Transport == nil {
		cfg.Transport = http.DefaultTransport
	}
	cfg.Names = cfg.Names.orFields()
	base, err := url.Parse(cfg.BaseURL)
	if err != nil {
		return nil, fmt.Errorf("parsing the API's URL: %w", err)
	}
	calls := newCalls(cfg)
	bearer := newBearer(cfg, calls)
	o := &OAuth{
		controlURL: cfg.ControlURL,
		baseURL:    cfg.BaseURL,
		credential: credentialOf(cfg),
		names:      cfg.Names,
		tags:       slices.Clone(cfg.Tags),
		ttl:        cfg.AuthKeyTTL,
		mark:       newMark(cfg),
		calls:      calls,
		bearer:     bearer,
		ahead:      newAhead(cfg.KeysAhead, cfg.AuthKeyTTL, cfg.Logger),
		api: &tailscale.Client{
			BaseURL:   base,
			UserAgent: "tailscale-nri",
			Tailnet:   cmp.Or(cfg.Tailnet, "-"),
			HTTP:      &http.Client{Transport: bearer},
		},
	}
	o.ahead.mint = func(ctx context.Context, k kind) (aheadKey, error) {
		until := time.Now().Add(o.ahead.life).Round(0) // by a clock that goes on while a laptop sleeps
		key, err := o.mint(ctx, "minting an auth key ahead", k, "tailscale-nri "+cfg.Cluster+" for the next pod")
		if err != nil {
			return aheadKey{}, err
		}
		return aheadKey{key.ID, key.Key, until}, nil
	}
	o.ahead.revoke = o.api.Keys().Delete
	return o, nil
}

// String keeps secrets out of logs.
func (o *OAuth) String() string { return "tailnet with " + o.credential.kind + " at " + o.baseURL }

// ControlURL implements Tailnet.
func (o *OAuth) ControlURL() string { return o.controlURL }

// NewAuthKey returns a key for n: one that was minted ahead, or a new one. Errors are *Error, or wrap ctx's.
func (o *OAuth) NewAuthKey(ctx context.Context, n Node) (string, error) {
	op := "minting auth key for " + n.Hostname
	tags := n.Tags
	if len(tags) == 0 {
		tags = o.tags
	}
	if len(tags) == 0 {
		return "", &Error{
			Op:     op,
			Reason: "a node that comes in over " + o.credential.kind + " needs a tag, and has none",
			Remedy: "set " + o.names.Tags + ", or " + o.names.NodeTags,
		}
	}
	want := kind{tags, n.Ephemeral}
	if key, ok := o.ahead.take(want); ok && ctx.Err() == nil {
		return key, nil
	}
	key, err := o.mint(ctx, op, want, cmp.Or(n.Description, n.Hostname))
	if err != nil {
		return "", err
	}
	return key.Key, nil
}

// mint asks the API for a key.
func (o *OAuth) mint(ctx context.Context, op string, k kind, description string) (*tailscale.Key, error) {
	req := tailscale.CreateKeyRequest{
		ExpirySeconds: int64(o.ttl / time.Second),
		Description:   describe(description),
	}
	create := &req.Capabilities.Devices.Create
	create.Preauthorized = true
	create.Tags, create.Ephemeral = k.tags, k.ephemeral
	key, err := o.api.Keys().CreateAuthKey(ctx, req)
	if err != nil {
		return nil, o.explain(ctx, op, k.tags, err)
	}
	if key.Key == "" {
		return nil, &Error{Op: op, Reason: "the API at " + o.baseURL + " answered without a key", Temporary: true}
	}
	return key, nil
}

// describe makes a text that the API takes as a key's description: letters,
// digits, hyphens and spaces, 50 at most.
func describe(text string) string {
	var b strings.Builder
	for _, r := range text {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == ' ':
			b.WriteRune(r)
		default:
			b.WriteByte('-')
		}
	}
	out := b.String()
	return strings.Trim(out[:min(len(out), maxDescriptionLen)], " -")
}
