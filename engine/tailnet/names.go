// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import "cmp"

// Names are the names that errors use for the settings that can fix the fault: as the
// users of the program know them, which fills this in. Where one is empty, errors name
// the field of this package instead, such as StaticConfig.AuthKey.
type Names struct {
	ClientID     string
	ClientSecret string
	IDTokenFile  string
	AuthKey      string
	ControlURL   string
	AuthKeyTTL   string
	Tags         string
	Proxy        string // with its user and password

	// What a pod asks for by itself, with an article where it takes one: "the
	// annotation example.com/tags".
	NodeTags, NodeEphemeral string
}

// orFields fills in the fields' names where none are given.
func (n Names) orFields() Names {
	return Names{
		ClientID:      cmp.Or(n.ClientID, "OAuthConfig.ClientID"),
		ClientSecret:  cmp.Or(n.ClientSecret, "OAuthConfig.ClientSecret"),
		IDTokenFile:   cmp.Or(n.IDTokenFile, "OAuthConfig.IDTokenFile"),
		AuthKey:       cmp.Or(n.AuthKey, "StaticConfig.AuthKey"),
		ControlURL:    cmp.Or(n.ControlURL, "OAuthConfig.ControlURL"),
		AuthKeyTTL:    cmp.Or(n.AuthKeyTTL, "OAuthConfig.AuthKeyTTL"),
		Tags:          cmp.Or(n.Tags, "the default tags"),
		Proxy:         cmp.Or(n.Proxy, "OAuthConfig.Transport"),
		NodeTags:      cmp.Or(n.NodeTags, "Node.Tags"),
		NodeEphemeral: cmp.Or(n.NodeEphemeral, "Node.Ephemeral"),
	}
}
