// SPDX-License-Identifier: BSD-3-Clause

package scene

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	tailscale "tailscale.com/client/tailscale/v2"

	nri "tailscale-nri/engine/tailnet"
	"tailscale-nri/k3d/lab"
)

// Device is a node as the tailnet knows it.
type Device struct{ ID, Hostname string }

// tailnet is what a scene needs of one, in addition to what the plugin does with it.
type tailnet interface {
	name() string
	env() []string // leads the plugin there
	loginServer() string
	peerKey(ctx context.Context, tags []string) (string, error)
	// devices of ours, and maybe others
	devices(ctx context.Context) ([]Device, error)
	delete(ctx context.Context, id string) error
}

// labTailnet is the lab's control plane.
type labTailnet struct{ plane *lab.ControlPlane }

func newLabTailnet(ctx context.Context, running *lab.Lab) (labTailnet, error) {
	plane, err := running.StartControl(ctx)
	return labTailnet{plane}, err
}

func (t labTailnet) name() string        { return "the lab's own tailnet" }
func (t labTailnet) loginServer() string { return t.plane.ControlURL }

func (t labTailnet) env() []string {
	return []string{
		"TS_OAUTH_CLIENT_ID=" + t.plane.OAuthClientID, "TS_OAUTH_CLIENT_SECRET=" + t.plane.OAuthClientSecret,
		"TS_LOGIN_SERVER=" + t.plane.ControlURL, "TS_API_URL=" + t.plane.APIURL, "AUTH_KEY_TTL=",
	}
}

func (t labTailnet) peerKey(ctx context.Context, tags []string) (string, error) {
	return t.plane.NewKey(ctx, tags...)
}

func (t labTailnet) devices(ctx context.Context) ([]Device, error) {
	list, err := t.plane.Devices(ctx)
	if err != nil {
		return nil, err
	}
	var devices []Device
	for _, d := range list {
		devices = append(devices, Device{d.ID, d.Hostname})
	}
	return devices, nil
}

func (t labTailnet) delete(context.Context, string) error {
	return errors.New("the lab's devices end with the lab")
}

// OwnTailnet leads to a tailnet of the user's. The OAuth client needs write access to the scopes auth_keys and
// devices:core and must own Config.Tags, and the policy must let these tags reach each other.
type OwnTailnet struct {
	ClientID     string
	ClientSecret string `json:"-"`
	APIURL       string // "" means Tailscale's
	LoginServer  string // "" means Tailscale's
}

// String keeps the secret out of logs.
func (o OwnTailnet) String() string { return "tailnet of OAuth client " + o.ClientID }

// ownTailnet mints and deletes as the plugin does, and lists with an API client of its own.
type ownTailnet struct {
	OwnTailnet
	oauth *nri.OAuth
	api   *tailscale.Client
}

func newOwnTailnet(own OwnTailnet, tags []string) (*ownTailnet, error) {
	own.APIURL = strings.TrimRight(cmp.Or(own.APIURL, "https://api.tailscale.com"), "/")
	oauth, err := nri.NewOAuth(nri.OAuthConfig{
		ClientID: own.ClientID, ClientSecret: own.ClientSecret, BaseURL: own.APIURL, ControlURL: own.LoginServer, Tags: tags,
	})
	if err != nil {
		return nil, err
	}
	base, err := url.Parse(own.APIURL)
	if err != nil {
		return nil, fmt.Errorf("parsing TS_API_URL: %w", err)
	}
	auth := &tailscale.OAuth{ClientID: own.ClientID, ClientSecret: own.ClientSecret}
	return &ownTailnet{own, oauth, &tailscale.Client{BaseURL: base, Auth: auth, UserAgent: "tailscale-nri"}}, nil
}

func (t *ownTailnet) name() string        { return "your own tailnet, at " + t.APIURL }
func (t *ownTailnet) loginServer() string { return t.LoginServer }

func (t *ownTailnet) env() []string {
	return []string{
		"TS_OAUTH_CLIENT_ID=" + t.ClientID, "TS_OAUTH_CLIENT_SECRET=" + t.ClientSecret,
		"TS_API_URL=" + t.APIURL, "TS_LOGIN_SERVER=" + t.LoginServer,
	}
}

func (t *ownTailnet) peerKey(ctx context.Context, tags []string) (string, error) {
	return t.oauth.NewAuthKey(ctx, nri.Node{Hostname: peerName, Tags: tags, Description: "tailscale-nri demo peer"})
}

// devices are those that bear the demo's names: the others are none of its business.
func (t *ownTailnet) devices(ctx context.Context) ([]Device, error) {
	list, err := t.api.Devices().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing the tailnet's devices: %w", err)
	}
	var devices []Device
	for _, d := range list {
		if d.Hostname == peerName || strings.HasPrefix(d.Hostname, ClusterName+"-") {
			devices = append(devices, Device{d.NodeID, d.Hostname})
		}
	}
	return devices, nil
}

func (t *ownTailnet) delete(ctx context.Context, id string) error { return t.oauth.Delete(ctx, id) }
