// SPDX-License-Identifier: BSD-3-Clause

package podtools

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"tailscale-nri/engine"
	"tailscale-nri/engine/tailnet"
	"tailscale-nri/k3d/lab/control"
	"tailscale-nri/nri-plugin/internal/config"
	"tailscale-nri/nri-plugin/internal/logging"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/settings"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

// ownHostVar marks a process whose netns is a test's own.
const ownHostVar = "TAILSCALE_NRI_TEST_HOST"

// onOwnHost runs the test of that name once more, in a process with a network
// namespace of its own, and reports whether this is that process.
func onOwnHost(t *testing.T) bool {
	t.Helper()
	if os.Getenv(ownHostVar) == t.Name() {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=3m")
	cmd.Env = append(os.Environ(), ownHostVar+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	var out []byte
	go func() {
		runtime.LockOSThread() // whose end Pdeathsig follows
		var err error
		out, err = cmd.CombinedOutput()
		started <- err
	}()
	if err := <-started; err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("on a host of its own: %v\n%s", err, out)
	}
	return false
}

// rig is a host with an engine, the status socket of its process, and pods.
type rig struct {
	t       *testing.T
	control *control.Server
	engine  *engine.Engine
	socket  string
	dir     string
}

// rigPod is a pod's network namespace.
type rigPod struct {
	rig  *rig
	ns   netns.NsHandle
	spec engine.Pod
}

// rigAddr is the host's address.
var rigAddr = netip.MustParseAddr("172.30.71.1")

// newRig makes one in this process's netns, which must be a test's own.
func newRig(t *testing.T) *rig {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	plugintest.Must(t, err)
	plugintest.Must(t, netlink.LinkSetUp(lo))
	plugintest.AddLink(t, "uplink", 1500, netip.PrefixFrom(rigAddr, 24).String())
	peer, err := netlink.LinkByName("puplink")
	plugintest.Must(t, err)
	plugintest.Must(t, netlink.LinkSetUp(peer))
	r := &rig{t: t, dir: t.TempDir()}
	r.control, err = control.Start(control.Config{Addr: rigAddr, OAuthClientSecret: plugintest.Secret})
	plugintest.Must(t, err)
	t.Cleanup(r.control.Close)
	api, err := tailnet.NewOAuth(tailnet.OAuthConfig{
		ClientID: "lab-client", ClientSecret: plugintest.Secret, BaseURL: r.control.APIURL(), ControlURL: r.control.ControlURL(),
	})
	plugintest.Must(t, err)
	cfg := config.Config{StateDir: filepath.Join(r.dir, "state"), OAuthSecret: plugintest.Secret}
	config.UseProxy(cfg.Proxy) // before the engine, as serve has it: a command is another process elsewhere
	r.engine, err = engine.New(engine.Config{
		StateDir: cfg.StateDir, Tailnet: api, SweepAfter: -1, Logger: slog.New(slog.DiscardHandler), Redact: logging.RedactText(cfg),
	})
	plugintest.Must(t, err)
	h := &statussocket.Health{}
	h.Serves(r.engine)
	h.PodAPI.Serves(r.engine.PodAPI())
	h.Connect()(nil)
	r.socket = filepath.Join(r.dir, "status.sock")
	ln, err := statussocket.Listen(t.Context(), r.socket)
	plugintest.Must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- r.engine.Run(ctx) }()
	go func() { ended <- (&statussocket.Server{Health: h, Listener: ln}).Run(ctx) }()
	t.Cleanup(func() {
		stop()
		for range 2 {
			if err := plugintest.Receive(t, ended, "the end"); err != nil {
				t.Error(err)
			}
		}
	})
	return r
}

// pod attaches a pod and waits for its node.
func (r *rig) pod(name string) (*rigPod, engine.NodeStatus) {
	r.t.Helper()
	p := r.attach(name)
	return p, r.await(name, engine.Running)
}

// attach attaches a pod.
func (r *rig) attach(name string) *rigPod {
	r.t.Helper()
	p := &rigPod{rig: r, ns: netns.None()}
	r.t.Cleanup(p.end)
	plugintest.InNetns(r.t, func() {
		var err error
		if p.ns, err = netns.Get(); err != nil {
			r.t.Error(err)
		}
	})
	p.spec = engine.Pod{
		SandboxID: "sandbox-" + name, UID: "uid-" + name, Namespace: "default", Name: name, Hostname: "k8s-default-" + name,
		// Other processes find it there too.
		NetNS: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(p.ns)), Tags: []string{"tag:k8s-pod"},
	}
	_, err := r.engine.Attach(r.t.Context(), p.spec)
	plugintest.Must(r.t, err)
	return p
}

// await waits until the pod's node is in the state.
func (r *rig) await(name string, want engine.State) engine.NodeStatus {
	r.t.Helper()
	for deadline := time.Now().Add(plugintest.Patience); ; time.Sleep(5 * time.Millisecond) {
		for _, s := range r.engine.Status() {
			if s.Pod == name && s.State == want {
				return s
			}
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%s is not %s: %+v", name, want, r.engine.Status())
		}
	}
}

func (p *rigPod) end() {
	if p.ns.IsOpen() {
		p.ns.Close()
	}
}

// do calls f on a thread in the pod.
func (p *rigPod) do(f func() error) {
	p.rig.t.Helper()
	var err error
	plugintest.InNetns(p.rig.t, func() {
		if err = unix.Setns(int(p.ns), unix.CLONE_NEWNET); err == nil {
			err = f()
		}
	})
	plugintest.Must(p.rig.t, err)
}

// swallow reads all that comes to TCP port 7 of the pod.
func (p *rigPod) swallow() {
	var ln net.Listener
	p.do(func() (err error) {
		ln, err = net.Listen("tcp", ":7")
		return err
	})
	p.rig.t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
	}()
}

// send sends data from the pod to port 7 of another, over TCP.
func (p *rigPod) send(to netip.Addr, data []byte) {
	var c net.Conn
	p.do(func() (err error) {
		c, err = net.DialTimeout("tcp", netip.AddrPortFrom(to, 7).String(), plugintest.Patience)
		return err
	})
	defer c.Close()
	if _, err := c.Write(data); err != nil {
		p.rig.t.Fatal(err)
	}
	plugintest.Must(p.rig.t, c.(*net.TCPConn).CloseWrite())
	_, _ = io.Copy(io.Discard, c) // until it has read all
}

// call runs a command in this process. code is what the process would end with.
func (r *rig) call(args ...string) (code int, stdout, stderr string) {
	r.t.Helper()
	var out, errs strings.Builder
	getenv := plugintest.Environment(map[string]string{settings.StatusSocket: r.socket})
	err := Run(r.t.Context(), args[0], args[1:], getenv, &out, &errs)
	if err != nil {
		fmt.Fprintln(&errs, err)
	}
	switch {
	case errors.As(err, new(statussocket.CannotAsk)):
		code = 2
	case err != nil:
		code = 1
	}
	return code, out.String(), errs.String()
}

// roleTool makes the test binary a program that is the tools alone.
const roleTool = "tool"

// toolProcess is that program. It returns its exit code.
func toolProcess() int {
	ctx, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := Run(ctx, os.Args[1], os.Args[2:], os.Getenv, os.Stdout, os.Stderr)
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "tailscale-nri:", err)
	if errors.As(err, new(statussocket.CannotAsk)) {
		return 2
	}
	return 1
}

// process is that program with these arguments.
func (r *rig) process(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = []string{plugintest.RoleVar + "=" + roleTool, "GOCOVERDIR=" + r.t.TempDir(), settings.StatusSocket + "=" + r.socket}
	return cmd
}
