// SPDX-License-Identifier: BSD-3-Clause

package nri

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"github.com/containerd/ttrpc"
	"tailscale.com/tstime"

	"tailscale-nri/nri-plugin/internal/errtext"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

// The plugin as the runtime knows it. A validator that requires it asks for
// the name without the index. The index orders plugins; this one need not come before or after another.
const (
	pluginName  = "tailscale"
	pluginIndex = "50"
)

// Registration keeps a plugin registered with the runtime.
type Registration struct {
	Socket string // path of the runtime's NRI socket
	Plugin *Plugin
	Health *statussocket.Health
	Log    *slog.Logger

	// Bounds of the wait between two tries; zero is 200 ms and 5 s. A pod that
	// starts meanwhile is attached late, so the upper one is short.
	minWait, maxWait time.Duration
	otherWait        time.Duration // see awaitOther; zero is a minute

	reported string      // the failure that the log has; "" while registered
	tried    os.FileInfo // the socket that was dialled last, nil if there was none
}

// Run registers the plugin again whenever the connection is lost, until ctx is
// done. It then returns nil.
func (r *Registration) Run(ctx context.Context) error {
	least, most := cmp.Or(r.minWait, 200*time.Millisecond), cmp.Or(r.maxWait, 5*time.Second)
	wait := least
	for ctx.Err() == nil {
		start := time.Now()
		err := r.session(ctx)
		if ctx.Err() != nil {
			break
		}
		r.report(err)
		if errors.As(err, new(otherRuntime)) {
			r.awaitOther(ctx)
			wait = least
			continue
		}
		// A connection that the runtime closes at once is a failure as well.
		if time.Since(start) > most {
			wait = least
		}
		tstime.Sleep(ctx, wait/2+rand.N(wait/2+1))
		wait = min(2*wait, most)
	}
	return nil
}

// errClosed ends a session that was registered.
var errClosed = errors.New("the runtime closed the connection")

// session is one connection, from dialling to its end. It always returns an
// error. Each has a stub of its own: a stub that failed to register keeps its
// dead connection and would use it again.
func (r *Registration) session(ctx context.Context) error {
	r.tried, _ = os.Stat(r.Socket) // before, so that a change meanwhile is seen
	conn, err := dialNRI(ctx, r.Socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	ses := newSession(r.Socket, r.Health.Connect())
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	answered := make(chan struct{})
	s, err := stub.New(connection{r.Plugin, ses},
		stub.WithLogger(NewQuietLogger(r.Log)),
		stub.WithConnection(conn),
		stub.WithPluginName(pluginName),
		stub.WithPluginIdx(pluginIndex),
		stub.WithTTRPCOptions([]ttrpc.ClientOpts{closeOnAnswer(answered)}, nil),
		// A late answer should not cost the connection, and with it other pods'
		// hooks. Runtimes that do not know the policy ignore it.
		stub.WithFailurePolicy(&api.FailurePolicy{KeepConnected: true}),
	)
	if err != nil {
		return fmt.Errorf("creating the NRI stub: %w", err)
	}
	if err := start(ctx, s, conn.lost, answered); err != nil {
		return fmt.Errorf("registering on %s: %w", r.Socket, err)
	}
	defer s.Stop()
	select {
	case <-conn.lost:
		return ses.end()
	case <-ses.refused:
		// The runtime ends the connection, since it has an error for an answer.
		select {
		case <-conn.lost:
		case <-time.After(time.Second):
		}
		return ses.end()
	case <-ses.accepted:
	}
	r.reported = ""
	r.Health.RegisteredAs(infoOf(ses, s, r.Plugin.OwnUID != ""))
	<-conn.lost
	return errClosed
}

// closeOnAnswer closes answered when the runtime answers the registration, the
// one request that this plugin makes.
func closeOnAnswer(answered chan struct{}) ttrpc.ClientOpts {
	return ttrpc.WithUnaryClientInterceptor(func(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
		err := invoke(ctx, req, resp)
		if err == nil {
			close(answered)
		}
		return err
	})
}

// start registers the plugin and returns once it is configured.
//
// If the connection is lost between the two, the stub waits for its
// configuration forever, and with a lock held. A call that start makes, and
// that the plugin refuses since its context is over, ends that wait.
func start(ctx context.Context, s stub.Stub, lost, answered <-chan struct{}) error {
	done := make(chan error, 1)
	go func() { done <- s.Start(ctx) }()
	select {
	case err := <-done:
		return err
	case <-lost:
	}
	select {
	case err := <-done:
		return err
	case <-answered:
	}
	over, cancel := context.WithCancel(ctx)
	cancel()
	if service, ok := s.(api.PluginService); ok {
		// Its error is the one that Start returns.
		_, _ = service.Configure(over, &api.ConfigureRequest{NRIVersion: "none"})
	}
	err := <-done
	if errors.Is(err, context.Canceled) {
		return errClosed
	}
	return err
}

// report says why the plugin is not registered: whenever it is asked, and in the
// log once for each new reason.
func (r *Registration) report(err error) {
	text, short := err.Error(), errtext.OneLine(err)
	if statussocket.NobodyListens(err) {
		text = "nothing listens on the NRI socket " + r.Socket + ": " + enableNRI
		short = noRuntime(r.Socket)
	}
	r.Health.Disconnected(short, errors.Is(err, errClosed))
	if text == r.reported {
		return
	}
	r.reported = text
	r.Log.Warn("not registered with the container runtime, trying again", "reason", text)
}

// noRuntime is enableNRI for those that show no more than a line.
func noRuntime(socket string) string {
	return "nothing listens on the NRI socket " + socket +
		": is containerd running, its NRI on, the directory mounted? The log of tailscale-nri says more"
}

// enableNRI says what to do where the NRI socket is absent.
const enableNRI = "containerd is not running, its NRI is off, or the socket's directory is not mounted here; " +
	"containerd 2 (k3s from v1.31.6+k3s1 and v1.32.2+k3s1 on) has NRI on unless told otherwise; on an older k3s write " +
	"the lines `{{ template \"base\" . }}`, `[plugins.\"io.containerd.nri.v1.nri\"]` and `disable = false` to " +
	"/var/lib/rancher/k3s/agent/etc/containerd/config.toml.tmpl and restart k3s or k3s-agent; " +
	"a socket elsewhere goes into " + settings.NRISocket

// nriConn is a connection that tells when it ended.
type nriConn struct {
	net.Conn
	once sync.Once
	lost chan struct{}
}

func dialNRI(ctx context.Context, socket string) (*nriConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("connecting to the NRI socket: %w", err)
	}
	return &nriConn{Conn: c, lost: make(chan struct{})}, nil
}

// Read implements [net.Conn]. The stub reads all the time and sets no
// deadline, so an error is the end.
func (c *nriConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.once.Do(func() { close(c.lost) })
	}
	return n, err
}

// LacksRuntime says why there is no runtime to register with, as far as that can
// be seen without asking it, "" if there may be one.
func LacksRuntime(socket string) string {
	if _, err := os.Stat(socket); err != nil {
		return noRuntime(socket)
	}
	return ""
}
