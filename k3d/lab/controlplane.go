// SPDX-License-Identifier: BSD-3-Clause

package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"tailscale-nri/k3d/lab/control"
)

// The ports of the control plane and of its API on NetIP4. They stay the same when it is restarted.
const (
	controlPort = 8080
	apiPort     = 8081
)

// ControlPlane is the lab's tailnet: a process of the lab, asked over a unix socket.
type ControlPlane struct {
	process *Process // nil after Open
	client  http.Client

	ControlURL        string // the login server's
	APIURL            string
	OAuthClientID     string
	OAuthClientSecret string
}

const controlSocket = "control.sock"

func (c Config) controlClient() *ControlPlane {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", c.path(controlSocket))
	}
	return &ControlPlane{client: http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// StartControl starts the control plane and returns when it serves.
func (l *Lab) StartControl(ctx context.Context) (*ControlPlane, error) {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	// A control plane that was killed has left its socket, and no other is to be taken for the new one.
	os.Remove(l.cfg.path(controlSocket))
	cmd := l.NetCommand(context.WithoutCancel(ctx), l.cfg.bin("lab"), "control")
	cmd.Env = append(cmd.Env, "LAB_NAME="+l.cfg.Name, "LAB_DIR="+l.cfg.Dir, "LAB_BUILD="+l.cfg.Build)
	process, err := l.cfg.start("control", cmd)
	if err != nil {
		return nil, err
	}
	plane := l.cfg.controlClient()
	plane.process = process
	return plane, process.Await(ctx, plane.hello)
}

// Control returns the control plane that another program has started.
func (l *Lab) Control(ctx context.Context) (*ControlPlane, error) {
	plane := l.cfg.controlClient()
	return plane, plane.hello(ctx)
}

func (p *ControlPlane) hello(ctx context.Context) error {
	return p.call(ctx, http.MethodGet, "/hello", nil, p)
}

// Process is the control plane's, nil if another program has started it.
func (p *ControlPlane) Process() *Process { return p.process }

// Devices lists the tailnet's nodes.
func (p *ControlPlane) Devices(ctx context.Context) (devices []control.Device, err error) {
	err = p.call(ctx, http.MethodGet, "/devices", nil, &devices)
	return devices, err
}

// NewKey mints a single-use auth key that gives a node these tags.
func (p *ControlPlane) NewKey(ctx context.Context, tags ...string) (key string, err error) {
	err = p.call(ctx, http.MethodPost, "/key", tags, &key)
	return key, err
}

// NewReusableKey is NewKey for any number of nodes.
func (p *ControlPlane) NewReusableKey(ctx context.Context, tags ...string) (key string, err error) {
	err = p.call(ctx, http.MethodPost, "/key/reusable", tags, &key)
	return key, err
}

// Counters of the API since the start.
func (p *ControlPlane) Counters(ctx context.Context) (counters control.Counters, err error) {
	err = p.call(ctx, http.MethodGet, "/counters", nil, &counters)
	return counters, err
}

// Secrets are all auth keys and access tokens that the tailnet has ever handed out.
func (p *ControlPlane) Secrets(ctx context.Context) (secrets []string, err error) {
	err = p.call(ctx, http.MethodGet, "/secrets", nil, &secrets)
	return secrets, err
}

// TrustIssuer has the API exchange an issuer's tokens for access tokens. What a Kubernetes API server says of its keys
// (/openid/v1/jwks) is for Issuer.JWKS.
func (p *ControlPlane) TrustIssuer(ctx context.Context, issuer control.Issuer) error {
	return p.call(ctx, http.MethodPost, "/issuer", issuer, nil)
}

// SetOutage takes the login server away or brings it back.
func (p *ControlPlane) SetOutage(ctx context.Context, outage control.Outage) error {
	return p.call(ctx, http.MethodPost, "/outage", outage, nil)
}

// SetApart hides the tailnet's nodes from each other, from their next netmap on, as a policy does without any
// rule. It is meant for a tailnet that is still empty: nodes that have seen each other are not told otherwise.
func (p *ControlPlane) SetApart(ctx context.Context, apart bool) error {
	return p.call(ctx, http.MethodPost, "/apart", apart, nil)
}

// AddFault has the API answer wrongly.
func (p *ControlPlane) AddFault(ctx context.Context, fault control.Fault) error {
	return p.call(ctx, http.MethodPost, "/fault", fault, nil)
}

// ClearFaults makes the API well again.
func (p *ControlPlane) ClearFaults(ctx context.Context) error {
	return p.call(ctx, http.MethodDelete, "/fault", nil, nil)
}

// Expire ends the login of the device with an ID.
func (p *ControlPlane) Expire(ctx context.Context, id string) error {
	return p.call(ctx, http.MethodPost, "/expire", id, nil)
}

// Delete removes a device, as an admin would.
func (p *ControlPlane) Delete(ctx context.Context, id string) error {
	return p.call(ctx, http.MethodPost, "/delete", id, nil)
}

// SetRoutes approves these routes of a device, as far as it advertises them, and no others.
func (p *ControlPlane) SetRoutes(ctx context.Context, id string, approved ...netip.Prefix) error {
	return p.call(ctx, http.MethodPost, "/routes", routes{id, approved}, nil)
}

// SetLastSeen makes a device that is not connected older, or younger.
func (p *ControlPlane) SetLastSeen(ctx context.Context, id string, t time.Time) error {
	return p.call(ctx, http.MethodPost, "/lastseen", lastSeen{id, t}, nil)
}

// Exit has a device's client end its process with a code, or those of all devices if id is "". It returns how many
// connected clients that goes to.
func (p *ControlPlane) Exit(ctx context.Context, id string, code int) (clients int, err error) {
	err = p.call(ctx, http.MethodPost, "/exit", exit{id, code}, &clients)
	return clients, err
}

type (
	lastSeen struct {
		ID string
		At time.Time
	}
	exit struct {
		ID   string
		Code int
	}
	routes struct {
		ID       string
		Approved []netip.Prefix
	}
)

// call sends in and receives out as JSON; either may be nil.
func (p *ControlPlane) call(ctx context.Context, method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("asking the control plane for %s: %w", path, err)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://lab"+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("asking the control plane for %s: %w", path, err)
	}
	res, err := p.client.Do(req)
	if err != nil {
		return fmt.Errorf("asking the control plane for %s: %w", path, err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return fmt.Errorf("reading the control plane's answer to %s: %w", path, err)
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("asking the control plane for %s: %s: %s", path, res.Status, bytes.TrimSpace(answer))
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("reading the control plane's answer to %s: %w", path, err)
	}
	return nil
}

// ServeControl is the process behind StartControl: it serves a tailnet on NetIP4 until ctx is done. It runs in the
// lab's network namespace "net".
func ServeControl(ctx context.Context, cfg Config) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	tailnet := control.Config{
		Addr: netip.MustParseAddr(NetIP4), ControlPort: controlPort, APIPort: apiPort,
		OAuthClientID: "lab-client", OAuthClientSecret: "lab-secret", Logger: cfg.Logger,
	}
	server, err := control.Start(tailnet)
	if err != nil {
		return err
	}
	defer server.Close()
	api := &http.Server{Handler: adminAPIHandler(server, tailnet)}
	listener, err := net.Listen("unix", cfg.path(controlSocket))
	if err != nil {
		return fmt.Errorf("serving the control plane's admin API: %w", err)
	}
	defer context.AfterFunc(ctx, func() { api.Close() })()
	if err := api.Serve(listener); ctx.Err() == nil {
		return fmt.Errorf("serving the control plane's admin API: %w", err)
	}
	return nil
}

// adminAPIHandler turns calls of ControlPlane into calls of server.
func adminAPIHandler(server *control.Server, cfg control.Config) http.Handler {
	hello := &ControlPlane{
		ControlURL: server.ControlURL(), APIURL: server.APIURL(),
		OAuthClientID: cfg.OAuthClientID, OAuthClientSecret: cfg.OAuthClientSecret,
	}
	mux := http.NewServeMux()
	handle(mux, "GET /hello", func(struct{}) (any, error) { return hello, nil })
	handle(mux, "GET /devices", func(struct{}) (any, error) { return server.Devices(), nil })
	handle(mux, "GET /counters", func(struct{}) (any, error) { return server.Counters(), nil })
	handle(mux, "POST /key", func(tags []string) (any, error) { return server.NewKey(tags...), nil })
	handle(mux, "GET /secrets", func(struct{}) (any, error) { return server.Secrets(), nil })
	handle(mux, "POST /issuer", func(i control.Issuer) (any, error) { return nil, server.TrustIssuer(i) })
	handle(mux, "POST /key/reusable", func(tags []string) (any, error) { return server.NewReusableKey(tags...), nil })
	handle(mux, "POST /outage", func(o control.Outage) (any, error) { return nil, server.SetOutage(o) })
	handle(mux, "POST /apart", func(apart bool) (any, error) { server.SetApart(apart); return nil, nil })
	handle(mux, "POST /fault", func(f control.Fault) (any, error) { server.AddFault(f); return nil, nil })
	handle(mux, "DELETE /fault", func(struct{}) (any, error) { server.ClearFaults(); return nil, nil })
	handle(mux, "POST /expire", func(id string) (any, error) { return nil, server.Expire(id) })
	handle(mux, "POST /delete", func(id string) (any, error) { return nil, server.Delete(id) })
	handle(mux, "POST /routes", func(r routes) (any, error) { return nil, server.SetRoutes(r.ID, r.Approved...) })
	handle(mux, "POST /lastseen", func(l lastSeen) (any, error) { return nil, server.SetLastSeen(l.ID, l.At) })
	handle(mux, "POST /exit", func(e exit) (any, error) { return server.Exit(e.ID, e.Code) })
	return mux
}

// handle decodes the request's JSON for fn and encodes its answer.
func handle[In any](mux *http.ServeMux, pattern string, fn func(In) (any, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		var in In
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		out, err := fn(in)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		json.NewEncoder(w).Encode(out)
	})
}
