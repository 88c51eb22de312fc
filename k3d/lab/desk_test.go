// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"tailscale-nri/k3d/lab/control"
)

// TestDesk asks over the socket for what is done to a device: that there is none is the server's own answer.
func TestDesk(t *testing.T) {
	server, err := control.Start(control.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	cfg := Config{Dir: t.TempDir()}
	listener, err := net.Listen("unix", cfg.path(controlSocket))
	if err != nil {
		t.Fatal(err)
	}
	desk := &http.Server{Handler: deskHandler(server, control.Config{})}
	go desk.Serve(listener)
	t.Cleanup(func() { desk.Close() })
	ctx, plane := t.Context(), cfg.controlClient()
	_, exit := plane.Exit(ctx, "nNone", 1)
	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"Expire":      {plane.Expire(ctx, "nNone"), `no device "nNone" to expire`},
		"Delete":      {plane.Delete(ctx, "nNone"), `no device "nNone" to delete`},
		"SetLastSeen": {plane.SetLastSeen(ctx, "nNone", time.Now()), `no device "nNone" to age`},
		"Exit":        {exit, `no device "nNone" to end`},
	} {
		if test.err == nil || !strings.Contains(test.err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, test.err, test.want)
		}
	}
	if n, err := plane.Exit(ctx, "", 1); n != 0 || err != nil {
		t.Errorf("Exit of all = %d, %v", n, err)
	}
}
