// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"fmt"
	"net/url"
	"strings"
)

// RequestsTags implements Tailnet: the key may be of a user who owns the tags.
func (*Static) RequestsTags() bool { return true }

// RequestsTags implements Tailnet: a minted key has the node's tags, and Headscale
// (0.28 and later) refuses a node that requests any beside its key.
func (*OAuth) RequestsTags() bool { return false }

// WrongTags implements Tailnet.
func (s *Static) WrongTags(asked, granted []string) error {
	return &Error{
		Op: opLogin,
		Reason: fmt.Sprintf("the pod asks for %s (annotation tailscale.com/tags, or TS_TAGS) and the auth key in TS_AUTHKEY gave it %s: it gets no address",
			tagList(asked), tagList(granted)),
		Remedy: "put a key with these tags into TS_AUTHKEY and create the pod again, give the device the tags on the control server, or take them out of the annotation and of TS_TAGS and create the pod again",
	}
}

// WrongTags implements Tailnet.
func (o *OAuth) WrongTags(asked, granted []string) error {
	return &Error{
		Op: opLogin,
		Reason: fmt.Sprintf("the node was minted a key for %s (annotation tailscale.com/tags, or TS_TAGS) and the control plane gave it %s: it gets no address",
			tagList(asked), tagList(granted)),
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
