// SPDX-License-Identifier: BSD-3-Clause

package tailnet

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"testing"

	"tailscale-nri/k3d/lab/control"
)

// TestCalls: what each method asks of the API is known by its own name, and how
// each try ended.
func TestCalls(t *testing.T) {
	s := newAPI(t)
	o := newOAuth(t, s, nil)
	ctx := testContext(t)
	call := func(times int, fault control.Fault, do func() error) {
		t.Helper()
		if fault.Times = times; times > 0 {
			s.AddFault(fault)
		}
		do()
		s.ClearFaults()
	}
	mint := func() error { _, err := o.NewAuthKey(ctx, web); return err }
	list := func() error { _, err := o.Devices(ctx); return err }
	call(0, control.Fault{}, mint)
	call(2, control.Fault{Path: "/api/v2/tailnet/", Status: http.StatusBadGateway}, mint) // tried again
	call(1, control.Fault{Path: "/api/v2/tailnet/", Status: http.StatusTooManyRequests, RetryAfter: "0"}, list)
	call(1, control.Fault{Path: "/api/v2/tailnet/", Status: http.StatusForbidden}, list)
	call(0, control.Fault{}, func() error { _, err := o.Device(ctx, "nNone"); return err })
	call(0, control.Fault{}, func() error { return o.Delete(ctx, "nNone") })
	call(0, control.Fault{}, func() error { return o.Rename(ctx, "nNone", "web") })
	call(0, control.Fault{}, func() error { return o.ahead.revoke(ctx, "kNone") })
	got := o.Calls()
	s.Close()
	call(0, control.Fault{}, list)

	want := map[Call]uint64{
		{"token", "ok"}: 1, {"mint_key", "ok"}: 2, {"mint_key", "failed"}: 2,
		{"list_devices", "throttled"}: 1, {"list_devices", "ok"}: 1, {"list_devices", "refused"}: 1,
		{"get_device", "not_found"}: 1, {"delete_device", "not_found"}: 1, {"rename_device", "not_found"}: 1,
		{"revoke_key", "not_found"}: 1,
	}
	if !maps.Equal(got, want) {
		t.Errorf("got\n%v, want\n%v", got, want)
	}
	if n := o.Calls()[Call{"list_devices", "unanswered"}]; n == 0 {
		t.Errorf("no call is unanswered: %v", o.Calls())
	}
	for call := range o.Calls() {
		if !slices.Contains(Operations, call.Operation) || !slices.Contains(Results, call.Result) {
			t.Errorf("%v is not listed", call)
		}
	}
	if sum := fmt.Sprint(s.Counters().Calls); sum != "12" {
		t.Errorf("the API has had %s calls, 12 were counted", sum)
	}
}
