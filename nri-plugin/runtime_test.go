// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	"github.com/containerd/nri/pkg/net/multiplex"
	"github.com/containerd/ttrpc"
	"tailscale.com/feature/buildfeatures"

	"tailscale-nri/engine"
)

// patience is how long a test waits for what must happen. It bounds a hang and
// is no expectation.
const patience = 30 * time.Second

// roleVar makes the test binary another program.
const roleVar = "TAILSCALE_NRI_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVar) {
	case "runtime":
		runtimeProcess(os.Args[1])
	case "main":
		go endOnSignal()
		main()
	case "crash":
		if os.Getenv(restartsVar) != "" {
			os.Exit(crashCode)
		}
		main()
	case "sockets":
		if os.Getenv(restartsVar) != "" {
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

// runtimeProcess offers NRI on socket until its standard input ends.
func runtimeProcess(socket string) {
	r, err := newRuntime(socket, filepath.Dir(socket))
	if err == nil {
		err = r.Start()
	}
	fmt.Println(err)
	io.Copy(io.Discard, os.Stdin)
}

// testRuntime is the runtime's side of NRI, as containerd has it.
type testRuntime struct {
	*adaptation.Adaptation
	mu         sync.Mutex
	sandboxes  []*api.PodSandbox
	containers []*api.Container
	synced     chan error // the outcome of each Synchronize
}

func newRuntime(socket, dir string, options ...adaptation.Option) (*testRuntime, error) {
	r := &testRuntime{synced: make(chan error, 100)}
	sync := func(ctx context.Context, cb adaptation.SyncCB) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		_, err := cb(ctx, r.sandboxes, r.containers)
		r.synced <- err
		return err
	}
	update := func(context.Context, []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) { return nil, nil }
	var err error
	options = append(options, adaptation.WithSocketPath(socket),
		adaptation.WithPluginPath(filepath.Join(dir, "plugins")), adaptation.WithPluginConfigPath(dir))
	r.Adaptation, err = adaptation.New("containerd", "v2.4.2", sync, update, options...)
	return r, err
}

// startRuntime opens NRI in dir until the test ends.
func startRuntime(t *testing.T, dir string, sandboxes ...*api.PodSandbox) *testRuntime {
	t.Helper()
	return startRuntimeWith(t, dir, nil, sandboxes...)
}

func startRuntimeWith(t *testing.T, dir string, options []adaptation.Option, sandboxes ...*api.PodSandbox) *testRuntime {
	t.Helper()
	r, err := newRuntime(filepath.Join(dir, "nri.sock"), dir, options...)
	if err != nil {
		t.Fatal(err)
	}
	r.sandboxes = sandboxes
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Stop)
	<-r.synced // of the plugins that the runtime starts itself: none
	return r
}

// waitSynced waits until a plugin is synchronized and gets events.
func (r *testRuntime) waitSynced(t *testing.T) {
	t.Helper()
	if err := receive(t, r.synced, "Synchronize"); err != nil {
		t.Fatal(err)
	}
	r.BlockPluginSync().Unblock()
}

// create asks whether a container of the sandbox may be created.
func (r *testRuntime) create(sb *api.PodSandbox, name string) error {
	_, err := r.CreateContainer(context.Background(), &adaptation.CreateContainerRequest{
		Pod: sb, Container: &api.Container{Id: name, PodSandboxId: sb.Id, Name: name},
	})
	return err
}

// restart is create for a container that has run before, as the kubelet marks it.
func (r *testRuntime) restart(sb *api.PodSandbox, name string) error {
	_, err := r.CreateContainer(context.Background(), &adaptation.CreateContainerRequest{Pod: sb, Container: &api.Container{
		Id: name, PodSandboxId: sb.Id, Name: name, Annotations: map[string]string{annotationRestarts: "1"},
	}})
	return err
}

func (r *testRuntime) run(sb *api.PodSandbox) error {
	return r.RunPodSandbox(context.Background(), &adaptation.RunPodSandboxRequest{Pod: sb})
}

// startRuntimeProcess is startRuntime in a process of its own, whose end, by
// the function returned, closes its connections as containerd's end does.
func startRuntimeProcess(t *testing.T, dir string) (kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0], filepath.Join(dir, "nri.sock"))
	cmd.Env = append(os.Environ(), roleVar+"=runtime")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	t.Cleanup(kill)
	var said string
	if _, err := fmt.Fscan(out, &said); err != nil || said != "<nil>" {
		t.Fatalf("the runtime's process says %q, %v", said, err)
	}
	return kill
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
		case <-time.After(patience):
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
func startPlugin(t *testing.T, dir string, pods podSet, change ...func(*registration)) *logBook {
	t.Helper()
	book := newLogBook()
	log := slog.New(slog.NewTextHandler(book, nil))
	r := &registration{
		socket: filepath.Join(dir, "nri.sock"), plugin: &plugin{pods: pods, defaults: testDefaults, log: log}, health: &health{}, log: log,
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
		if err := receive(t, done, "the end of Run"); err != nil {
			t.Error(err)
		}
	})
	return book
}

// receive waits for a value.
func receive[T any](t *testing.T, c <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("waiting for %s: nothing after %v", what, patience)
	}
	return v
}

// logBook is a log that can be waited for.
type logBook struct {
	mu    sync.Mutex
	text  strings.Builder
	grown chan struct{}
}

func newLogBook() *logBook { return &logBook{grown: make(chan struct{}, 1)} }

func (b *logBook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case b.grown <- struct{}{}:
	default:
	}
	return b.text.Write(p)
}

// count says how often the log has said s.
func (b *logBook) count(s string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.text.String(), s)
}

func (b *logBook) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// wait waits until the log has said s for the nth time.
func (b *logBook) wait(t *testing.T, s string, n int) {
	t.Helper()
	for b.count(s) < n {
		receive(t, b.grown, fmt.Sprintf("the log to say %q %d times", s, n))
	}
}
