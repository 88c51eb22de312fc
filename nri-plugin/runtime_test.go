// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	"github.com/containerd/nri/pkg/net/multiplex"
	"github.com/containerd/ttrpc"
	"tailscale.com/feature/buildfeatures"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/statussocket"
	"tailscale-nri/nri-plugin/internal/supervisor"
)

func TestMain(m *testing.M) {
	switch os.Getenv(plugintest.RoleVar) {
	case "runtime":
		plugintest.RuntimeProcess(os.Args[1])
	case "main":
		go endOnSignal()
		main()
	case "crash":
		if supervisor.FindParent(os.Getenv).Supervises {
			os.Exit(crashCode)
		}
		main()
	case "sockets":
		if supervisor.FindParent(os.Getenv).Supervises {
			keepPacketSockets()
		}
		main()
	case "orphan":
		leaveOrphan()
	default:
		if buildfeatures.HasServe {
			fmt.Fprintln(os.Stderr, "these tests need the program's build tags: run make unit PKG=./nri-plugin RUN=TestName")
			os.Exit(1)
		}
		nrilog.Set(quietLogger{slog.New(slog.DiscardHandler)})
		os.Exit(m.Run())
	}
}

// serveAndHangUp is a runtime that takes one connection, serves it, and dies.
func serveAndHangUp(t *testing.T, socket string, serve func(net.Conn) error) (hungUp chan error) {
	t.Helper()
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	hungUp = make(chan error, 1)
	go func() {
		conn, err := ln.Accept()
		ln.Close()
		if err == nil {
			err = serve(conn)
			conn.Close()
		}
		hungUp <- err
	}()
	return hungUp
}

// registerOnce answers one registration on conn.
func registerOnce(conn net.Conn) error {
	written := make(chan struct{}, 100)
	mux := multiplex.Multiplex(countedConn{conn, written}, multiplex.WithBlockedRead())
	defer mux.Close()
	ln, err := mux.Listen(multiplex.RuntimeServiceConn)
	if err != nil {
		return err
	}
	srv, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	defer srv.Close()
	api.RegisterRuntimeService(srv, registrar{})
	go srv.Serve(context.Background(), ln)
	mux.Unblock()
	// The answer is one frame, its header and its content.
	for range 2 {
		select {
		case <-written:
		case <-time.After(plugintest.Patience):
			return errors.New("no registration came")
		}
	}
	return nil
}

// countedConn tells of each write that is done.
type countedConn struct {
	net.Conn
	written chan struct{}
}

func (c countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.written <- struct{}{}
	return n, err
}

// registrar says yes to a registration.
type registrar struct{}

func (registrar) RegisterPlugin(context.Context, *api.RegisterPluginRequest) (*api.Empty, error) {
	return &api.Empty{}, nil
}

func (registrar) UpdateContainers(context.Context, *api.UpdateContainersRequest) (*api.UpdateContainersResponse, error) {
	return nil, errors.New("not offered")
}

// fakePods stands in for the engine: it records calls and answers as told.
type fakePods struct {
	attached chan engine.Pod
	ended    chan string // "detach ID" or "forget ID"
	synced   chan []engine.Pod
	// syncedEnded are the ended sandboxes of the last Sync.
	syncedEnded atomic.Pointer[[]string]
	suspected   chan string  // sandboxes
	serves      sync.Map     // sandboxes that are attached
	known       sync.Map     // as serves, of those that have a node on disk and no link yet
	features    sync.Map     // of each sandbox that was attached
	sync        func() error // answers Sync; nil is success
	attach      atomic.Pointer[func(context.Context) error]
}

// answer has Attach call a, nil for success. An Attach that was given up may still be under way.
func (f *fakePods) answer(a func(context.Context) error) {
	if a == nil {
		f.attach.Store(nil)
		return
	}
	f.attach.Store(&a)
}

func newFakePods() *fakePods {
	return &fakePods{
		attached: make(chan engine.Pod, 100),
		ended:    make(chan string, 100),
		synced:   make(chan []engine.Pod, 100),

		suspected: make(chan string, 100),
	}
}

func (f *fakePods) Attach(ctx context.Context, pod engine.Pod) (anew bool, err error) {
	f.features.Store(pod.SandboxID, pod.Features)
	f.attached <- pod
	if answer := f.attach.Load(); answer != nil {
		if err := (*answer)(ctx); err != nil {
			return false, err
		}
	}
	_, had := f.serves.Swap(pod.UID+" "+pod.SandboxID, true)
	return !had, nil
}

func (f *fakePods) Serves(podUID, sandboxID string) bool {
	_, ok := f.serves.Load(podUID + " " + sandboxID)
	return ok
}

func (f *fakePods) Knows(podUID, sandboxID string) bool {
	_, ok := f.known.Load(podUID + " " + sandboxID)
	return ok || f.Serves(podUID, sandboxID)
}

func (f *fakePods) FeaturesOf(podUID, sandboxID string) (engine.Features, bool) {
	asked, ok := f.features.Load(sandboxID)
	if !ok {
		return engine.Features{}, false
	}
	return asked.(engine.Features), true
}

func (f *fakePods) Detach(_ context.Context, id string) error {
	f.ended <- "detach " + id
	return nil
}

func (f *fakePods) Forget(_ context.Context, id string) error {
	f.ended <- "forget " + id
	return nil
}

func (f *fakePods) Sync(_ context.Context, live []engine.Pod, ended []string) error {
	f.synced <- live
	f.syncedEnded.Store(&ended)
	if f.sync != nil {
		return f.sync()
	}
	return nil
}

// Await waits for Attach, and SocketDir is no directory.
func (f *fakePods) Await(ctx context.Context, podUID string) error {
	for {
		up := false
		f.serves.Range(func(key, _ any) bool {
			up = up || strings.HasPrefix(key.(string), podUID+" ")
			return !up
		})
		if up {
			return nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return errors.New("the device waits for approval in the admin console")
		}
	}
}

func (f *fakePods) SocketDir(podUID string) (string, error) {
	return "/state/" + podUID + "/socket", nil
}

func (f *fakePods) Suspect(id string) { f.suspected <- id }

// startPlugin keeps a plugin registered on dir's NRI socket until the test ends.
func startPlugin(t *testing.T, dir string, pods podSet, change ...func(*registration)) *plugintest.LogBook {
	t.Helper()
	book := plugintest.NewLogBook()
	log := slog.New(slog.NewTextHandler(book, nil))
	r := &registration{
		socket: filepath.Join(dir, "nri.sock"), plugin: &plugin{pods: pods, defaults: openDefaults, log: log}, health: &statussocket.Health{}, log: log,
		minWait: 10 * time.Millisecond, maxWait: 100 * time.Millisecond,
	}
	for _, f := range change {
		f(r)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := plugintest.Receive(t, done, "the end of Run"); err != nil {
			t.Error(err)
		}
	})
	return book
}
