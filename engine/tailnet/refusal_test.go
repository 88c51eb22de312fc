// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// Where the server is Tailscale's own, refused tags are ones that the key may not
// have: the node is not to come in without them.
func TestTagsRefused(t *testing.T) {
	const message = "requested tags [tag:x] are invalid or not permitted"
	for server, want := range map[string]bool{
		"":                                   false,
		"https://controlplane.tailscale.com": false,
		"https://headscale.example.com":      true,
		"http://10.0.0.1:8080":               true,
		"https://nottailscale.com":           true,
	} {
		s, err := NewStatic(StaticConfig{AuthKey: "key", ControlURL: server})
		if err != nil {
			t.Fatal(err)
		}
		refusal := s.Refusal(message)
		if got := errors.Is(refusal, ErrTagsRefused); got != want {
			t.Errorf("%q: the node may try without tags: %v, want %v", server, got, want)
		}
		if strings.Contains(refusal.Error(), "\n") {
			t.Errorf("%q: more than one line: %q", server, refusal)
		}
	}
}

// Headscale's texts (0.29.0) for a pre-auth key that cannot be used.
func TestHeadscaleKeyRefused(t *testing.T) {
	s, err := NewStatic(StaticConfig{AuthKey: "hskey-auth-secret", ControlURL: "https://headscale.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	for _, message := range []string{"authkey expired", "authkey already used", "invalid authkey", "invalid pre auth key"} {
		got := s.Refusal(message).Error()
		for _, want := range []string{"StaticConfig.AuthKey", "make a reusable auth key", message} {
			if !strings.Contains(got, want) {
				t.Errorf("%q becomes %q, which does not say %q", message, got, want)
			}
		}
		if strings.Contains(got, "secret") {
			t.Errorf("the key is in %q", got)
		}
	}
}

func TestWrongTags(t *testing.T) {
	s, err := NewStatic(StaticConfig{AuthKey: "key"})
	if err != nil {
		t.Fatal(err)
	}
	got := s.WrongTags([]string{"tag:a", "tag:b"}, nil).Error()
	for _, want := range []string{"tag:a, tag:b", "no tag", "Node.Tags", "the default tags", "StaticConfig.AuthKey"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q does not say %q", got, want)
		}
	}
}

// A key's end has another remedy where the key is renewed by a login.
func TestKeyEnds(t *testing.T) {
	at := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, test := range []struct {
		name, server string
		tagged       bool
		want         string
	}{
		{"tagged on Headscale", "https://headscale.example.com", true, "headscale nodes expire --identifier 7 --disable"},
		{"a user's on Headscale", "https://headscale.example.com", false, "StaticConfig.AuthKey"},
		{"tagged on Tailscale", "", true, "StaticConfig.AuthKey"},
	} {
		s, err := NewStatic(StaticConfig{AuthKey: "key", ControlURL: test.server})
		if err != nil {
			t.Fatal(err)
		}
		got := KeyEnds(s, "7", test.tagged, at).Error()
		if !strings.Contains(got, test.want) || !strings.Contains(got, "2027-01-02T03:04:05Z") {
			t.Errorf("%s: %q does not say %q, or when", test.name, got, test.want)
		}
	}
}

// Errors of RFC 9457 are read as well as the API's own.
func TestAsMessage(t *testing.T) {
	for _, test := range []struct{ body, want string }{
		{`{"message":"no"}`, `{"message":"no"}`},
		{`{"title":"Not Found","status":404,"detail":"no such device"}`, `{"message":"no such device"}`},
		{`{"title":"Not Found","status":404}`, `{"message":"Not Found"}`},
		{`{}`, `{}`},
		{`[1]`, `[1]`},
		{"<h1>Bad\n Gateway</h1>", "{\"message\":\"\\u003ch1\\u003eBad Gateway\\u003c/h1\\u003e\"}"},
	} {
		if got := string(asMessage([]byte(test.body))); got != test.want {
			t.Errorf("%s becomes %s, want %s", test.body, got, test.want)
		}
	}
}
