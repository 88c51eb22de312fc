// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	tailscale "tailscale.com/client/tailscale/v2"
)

// TestNames: errors call settings by the names that they are given, and there is no
// name that no error has.
func TestNames(t *testing.T) {
	var names Names
	fields := reflect.ValueOf(&names).Elem()
	for i := range fields.NumField() {
		fields.Field(i).SetString("SETTING_" + fields.Type().Field(i).Name)
	}
	static, err := NewStatic(StaticConfig{AuthKey: "key", Names: names})
	if err != nil {
		t.Fatal(err)
	}
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }))
	defer refusing.Close()
	api := marked(t, func(c *OAuthConfig) { c.Names, c.BaseURL = names, refusing.URL })
	federated := marked(t, func(c *OAuthConfig) { c.Names, c.ClientSecret, c.IDTokenFile = names, "", "/not/there" })

	ctx := testContext(t)
	said := []error{
		static.WrongTags([]string{"tag:a"}, nil), static.Refusal("authkey expired"), static.Refusal("requested tags [tag:x] are invalid"),
		KeyEnds(static, "7", false, time.Now()),
		api.WrongTags([]string{"tag:a"}, nil), api.Refusal("authkey expired"),
		api.explain(ctx, "minting", nil, errors.New(http.StatusText(http.StatusProxyAuthRequired))),
		api.explain(ctx, "minting", []string{"tag:a"}, tailscale.APIError{Status: http.StatusBadRequest, Message: "tag"}),
		api.explain(ctx, "minting", nil, tailscale.APIError{Status: http.StatusForbidden}),
	}
	for _, ask := range []func(context.Context, Node) (string, error){static.NewAuthKey, api.NewAuthKey, federated.NewAuthKey} {
		for _, n := range []Node{{Ephemeral: true}, {Tags: []string{"tag:a"}}} {
			if _, err := ask(ctx, n); err != nil {
				said = append(said, err)
			}
		}
	}
	all := fmt.Sprint(said)
	for i := range fields.NumField() {
		if name := fields.Field(i).String(); !strings.Contains(all, name) {
			t.Errorf("no error speaks of %s", name)
		}
	}
	for _, field := range []string{"Config.", "Node.", "the default tags"} {
		if strings.Contains(all, field) {
			t.Errorf("an error speaks of %s…, though settings have names: %s", field, all)
		}
	}
}
