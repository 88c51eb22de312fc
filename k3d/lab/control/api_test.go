// SPDX-License-Identifier: BSD-3-Clause

package control

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"tailscale.com/types/key"
)

// call makes one request of the API and returns the status and the answer.
func call(t *testing.T, s *Server, method, path, token, body string) (int, map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(testContext(t), method, s.APIURL()+"/api/v2"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	return do(t, req)
}

func do(t *testing.T, req *http.Request) (int, map[string]any) {
	t.Helper()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if len(b) > 0 {
		if err := json.Unmarshal(b, &out); err != nil {
			t.Fatalf("answer %q: %v", b, err)
		}
	}
	return res.StatusCode, out
}

// token asks for an access token with the client named in the body.
func token(t *testing.T, s *Server, id, secret string) (int, string) {
	t.Helper()
	form := url.Values{"client_id": {id}, "client_secret": {secret}, "grant_type": {"client_credentials"}}
	req, err := http.NewRequestWithContext(testContext(t), "POST", s.APIURL()+"/api/v2/oauth/token", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	status, answer := do(t, req)
	secretToken, _ := answer["access_token"].(string)
	return status, secretToken
}

func TestAPI(t *testing.T) {
	s := start(t, Config{Tags: []string{"tag:x"}})
	if status, _ := token(t, s, "lab-client", "wrong"); status != http.StatusUnauthorized {
		t.Errorf("a token for a wrong secret: HTTP %d", status)
	}
	status, tok := token(t, s, "lab-client", "lab-secret")
	if status != http.StatusOK {
		t.Fatalf("token: HTTP %d", status)
	}
	const good = `{"capabilities":{"devices":{"create":{"preauthorized":true,"tags":["tag:x"]}}},"expirySeconds":60,"description":"default web"}`
	for _, test := range []struct {
		name, method, path, token, body string
		status                          int
		message                         string
	}{
		{"no token", "POST", "/tailnet/-/keys", "", good, 401, "API token invalid"},
		{"key", "POST", "/tailnet/-/keys", tok, good, 200, ""},
		{"no tags", "POST", "/tailnet/-/keys", tok, `{}`, 400, "must have tags"},
		{"a tag of others", "POST", "/tailnet/-/keys", tok, strings.ReplaceAll(good, "tag:x", "tag:y"), 400, "requested tags [tag:y] are invalid or not permitted"},
		{"a bad description", "POST", "/tailnet/-/keys", tok, strings.ReplaceAll(good, "default web", "default/web"), 400, "description"},
		{"not JSON", "POST", "/tailnet/-/keys", tok, "{", 400, "invalid request body"},
		{"no such key", "GET", "/tailnet/-/keys/kNone", tok, "", 404, "not found"},
		{"no such device", "DELETE", "/device/nNone", tok, "", 404, "no device"},
		{"devices", "GET", "/tailnet/-/devices", tok, "", 200, ""},
	} {
		status, answer := call(t, s, test.method, test.path, test.token, test.body)
		message, _ := answer["message"].(string)
		if status != test.status || !strings.Contains(message, test.message) {
			t.Errorf("%s: HTTP %d, %q; want %d, %q", test.name, status, message, test.status, test.message)
		}
	}
}

func TestAPIKeyAndDevice(t *testing.T) {
	ctx := testContext(t)
	s := start(t, Config{})
	_, tok := token(t, s, "lab-client", "lab-secret")
	_, answer := call(t, s, "POST", "/tailnet/-/keys", tok, `{"capabilities":{"devices":{"create":{"tags":["tag:x"]}}}}`)
	id, _ := answer["id"].(string)
	secret, _ := answer["key"].(string)
	n := newWireNode(t, s, "n")
	if err := n.login(ctx, secret); err != nil {
		t.Fatal(err)
	}
	if _, answer = call(t, s, "GET", "/tailnet/-/keys/"+id, tok, ""); answer["invalid"] != true || answer["key"] != nil {
		t.Errorf("a spent key is shown as %v", answer)
	}
	if status, _ := call(t, s, "DELETE", "/tailnet/-/keys/"+id, tok, ""); status != 200 {
		t.Errorf("deleting the key: HTTP %d", status)
	}
	d, _ := device(s.Devices(), "n")
	if _, answer = call(t, s, "GET", "/device/"+d.ID, tok, ""); answer["hostname"] != "n" || answer["nodeId"] != d.ID || answer["nodeKey"] != n.node.Public().String() {
		t.Errorf("the device is shown as %v", answer)
	}
	for _, want := range []int{200, 404} {
		if status, _ := call(t, s, "DELETE", "/device/"+d.ID, tok, ""); status != want {
			t.Errorf("deleting the device: HTTP %d, want %d", status, want)
		}
	}
	if c := s.Counters(); c.KeysMinted != 1 || c.DevicesDeleted != 1 || c.Tokens != 1 {
		t.Errorf("counters %+v", c)
	}
}

func TestKeyIsSpentOnce(t *testing.T) {
	s := start(t, Config{})
	secret := s.NewKey("tag:x")
	first, second := key.NewNode().Public(), key.NewNode().Public()
	for _, test := range []struct {
		by   key.NodePublic
		tags []string
		ok   bool
	}{
		{first, []string{"tag:y"}, false}, // not the key's, and the key is not spent by it
		{first, []string{"tag:x"}, true},
		{second, nil, false},
		{first, nil, true},
	} {
		if _, err := s.keys.use(secret, test.by, test.tags); (err == nil) != test.ok {
			t.Errorf("use by %v: %v, want ok %v", test.by.ShortString(), err, test.ok)
		}
	}
	if k, ok := s.Key(secret); !ok || k.UsedBy != first || k.Expires.Before(time.Now()) {
		t.Errorf("the key is %+v, %v", k, ok)
	}
}
