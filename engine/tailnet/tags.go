// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"net/url"
	"strings"
)

// RequestsTags implements Tailnet: the key may be of a user who owns the tags.
func (*Static) RequestsTags() bool { return true }

// RequestsTags implements Tailnet: a minted key has the node's tags, and Headscale
// (0.28 and later) refuses a node that requests any but those of its key.
func (*OAuth) RequestsTags() bool { return false }

// WrongTags implements Tailnet.
func (s *Static) WrongTags(asked, granted []string) error {
	return &Error{
		Op: opLogin,
		Reason: "the pod asks for " + tagList(asked) + " (" + s.names.NodeTags + ", or " + s.names.Tags + ") and the auth key in " +
			s.names.AuthKey + " gave it " + tagList(granted) + ": it gets no address",
		Remedy: "put a key with these tags into " + s.names.AuthKey + " and create the pod again, give the device the tags on the control server, or take them out of " +
			s.names.NodeTags + " and of " + s.names.Tags + " and create the pod again",
	}
}

// WrongTags implements Tailnet.
func (o *OAuth) WrongTags(asked, granted []string) error {
	return &Error{
		Op: opLogin,
		Reason: "the node was minted a key for " + tagList(asked) + " (" + o.names.NodeTags + ", or " + o.names.Tags + ") and the control plane gave it " +
			tagList(granted) + ": it gets no address",
		Remedy: "give the device these tags on the control server, or delete it there: the node then registers again",
	}
}

func tagList(tags []string) string {
	if len(tags) == 0 {
		return "no tag"
	}
	return strings.Join(tags, ", ")
}

// IsTailscales reports whether a login server is Tailscale's own, which grants
// the requested tags that a key may have, and refuses the others.
func IsTailscales(controlURL string) bool {
	u, err := url.Parse(controlURL)
	if controlURL == "" || err != nil {
		return true
	}
	host := strings.ToLower(u.Hostname())
	return host == "tailscale.com" || strings.HasSuffix(host, ".tailscale.com")
}
