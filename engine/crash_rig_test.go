// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tailscale-nri/engine/internal/nstest"
	"tailscale-nri/k3d/lab/control"
)

// process is a victim as its parent sees it.
type process struct {
	cmd     *exec.Cmd
	in      *json.Encoder
	answers chan report
	dead    chan struct{} // closed once it has ended and all it said is read
	log     lockedBuffer  // complete once it is dead

	mu    sync.Mutex
	steps []point
	last  time.Time // of the last step
}

// startProcess starts a victim, in a network namespace of its own if so told.
func startProcess(t *testing.T, ownNetNS ...bool) *process {
	t.Helper()
	p := &process{answers: make(chan report, 1), dead: make(chan struct{}), last: time.Now()}
	p.cmd = exec.Command("/proc/self/exe")
	p.cmd.Env = append(os.Environ(), victimEnv+"=1")
	p.cmd.Stderr = &p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if len(ownNetNS) > 0 && ownNetNS[0] {
		p.cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET
	}
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.in = json.NewEncoder(in)
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // Pdeathsig follows this thread
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.listen(json.NewDecoder(out))
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("starting a victim: %v", err)
	}
	return p
}

func (p *process) listen(out *json.Decoder) {
	defer close(p.dead)
	for {
		var r report
		if out.Decode(&r) != nil {
			break
		}
		p.mu.Lock()
		if r.Step != nil {
			p.steps, p.last = append(p.steps, *r.Step), time.Now()
		}
		p.mu.Unlock()
		if r.Done {
			p.answers <- r
		}
	}
	p.cmd.Wait()
}

// ask gives an order. ok is false if the process died over it.
func (p *process) ask(o order) (r report, ok bool) {
	if p.in.Encode(o) != nil {
		<-p.dead
		return r, false
	}
	select {
	case r = <-p.answers:
		return r, true
	case <-p.dead:
		return r, false
	}
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.dead
}

func (p *process) isDead() bool {
	select {
	case <-p.dead:
		return true
	default:
		return false
	}
}

// taken returns the steps so far.
func (p *process) taken() []point {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.steps)
}

// idle is how long no step has been taken.
func (p *process) idle() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Since(p.last)
}

// rig is a node of a cluster with its runtime and its plugin, and a tailnet
// of its own. The runtime behaves as containerd does: it repeats no call, and
// gives a plugin that connects its list.
type rig struct {
	t       *testing.T
	away    func(*rig) // what happens while no process runs
	control *control.Server
	prefix  string // of this rig's sandbox IDs
	dir     string // of the engine
	paths   string // of network namespaces
	authKey string // static; "" is OAuth
	store   string // of identities: its URL; "" is none

	sandboxes []*sandbox // all that there ever were

	p    *process
	die  *point // what p was told
	died bool   // there
	logs []string
}

// sandbox is a pod's sandbox.
type sandbox struct {
	Pod
	ns     *nstest.Pod
	listed bool // by the runtime
	ended  bool // its netns is gone
	broken bool // it has a ts0 that the engine has not made
}

var rigs atomic.Int64

func newRig(t *testing.T, sc scenario) *rig {
	t.Helper()
	srv, err := control.Start(control.Config{Addr: nstest.HostAddr})
	if err != nil {
		t.Fatal(err)
	}
	m := &rig{
		t: t, control: srv, prefix: fmt.Sprintf("%05d", rigs.Add(1)),
		dir: filepath.Join(t.TempDir(), "state"), paths: t.TempDir(),
	}
	if sc.static {
		m.authKey = srv.NewReusableKey("tag:k8s-pod")
	}
	if sc.kept {
		m.store = serveIdentities(t, newIdentities())
	}
	t.Cleanup(m.close)
	return m
}

// close ends the process and all else.
func (m *rig) close() {
	if m.p != nil {
		m.p.kill()
	}
	m.control.Close()
	for _, s := range m.sandboxes {
		s.ns.End()
	}
}

// newSandbox makes a pod's sandbox, which the runtime does not list yet.
func (m *rig) newSandbox(id, uid, name string) *sandbox {
	m.t.Helper()
	ns := nstest.NewPod(m.t)
	path := filepath.Join(m.paths, id)
	// The process's /proc/self is not this one's, and a descriptor's number may be
	// another netns's next.
	target := strings.Replace(ns.Path(), "/self/", fmt.Sprintf("/%d/", os.Getpid()), 1)
	if err := os.Symlink(target, path); err != nil {
		m.t.Fatal(err)
	}
	s := &sandbox{ns: ns, Pod: Pod{
		SandboxID: m.prefix + id, UID: "uid-" + uid, Namespace: "default", Name: name,
		NetNS: path, Hostname: "k8s-default-" + name,
	}}
	s.Features.Workload = m.store != ""
	if m.authKey == "" {
		s.Tags = []string{"tag:k8s-pod"}
	}
	m.sandboxes = append(m.sandboxes, s)
	return s
}

// get returns a sandbox.
func (m *rig) get(id string) *sandbox {
	m.t.Helper()
	for _, s := range m.sandboxes {
		if s.SandboxID == m.prefix+id {
			return s
		}
	}
	m.t.Fatalf("there is no sandbox %s", id)
	return nil
}

// start starts a process that dies at a point, or never, and tells it what the
// runtime lists.
func (m *rig) start(watch bool, die *point) {
	m.t.Helper()
	m.p, m.die = startProcess(m.t), die
	boot := order{
		Do: "boot", Dir: m.dir, APIURL: m.control.APIURL(), ControlURL: m.control.ControlURL(), AuthKey: m.authKey,
		Watch: watch, Die: die, Identities: m.store, Host: "n1", Calm: true,
	}
	if p := m.p; m.tell(boot) == "" && p == m.p {
		m.sync()
	}
}

// sync is Synchronize.
func (m *rig) sync() {
	m.t.Helper()
	o := order{Do: "sync"}
	for _, s := range m.sandboxes {
		switch {
		case s.listed && s.ended:
			o.Ended = append(o.Ended, s.SandboxID)
		case s.listed:
			o.Live = append(o.Live, s.Pod)
		}
	}
	m.tell(o)
}

// tell gives an order and returns what came of it: an error's text, or "". A
// process that dies over it is followed by another, and that is not an error.
func (m *rig) tell(o order) string {
	m.t.Helper()
	r, ok := m.p.ask(o)
	if !ok {
		m.restart()
	}
	return r.Err
}

// restart follows a process that has died.
func (m *rig) restart() {
	m.t.Helper()
	<-m.p.dead
	m.logs = append(m.logs, m.p.log.String())
	status, steps := m.p.cmd.ProcessState.Sys().(syscall.WaitStatus), m.p.taken()
	switch {
	case m.died || m.die == nil:
		m.fatalf("the process died by itself: %v", m.p.cmd.ProcessState)
	case !status.Signaled() || status.Signal() != syscall.SIGKILL || len(steps) == 0 || steps[len(steps)-1] != *m.die:
		m.fatalf("the process died of %v at %v", m.p.cmd.ProcessState, steps)
	}
	m.died = true
	m.startAgain()
}

// startAgain starts a process that lives, after what happens meanwhile.
func (m *rig) startAgain() {
	m.t.Helper()
	if m.away != nil {
		m.away(m)
	}
	m.start(false, nil)
}

// kill kills the process now.
func (m *rig) kill() {
	m.p.kill()
	m.logs = append(m.logs, m.p.log.String())
}

// watch has the process report its steps from now on, and die at a point.
func (m *rig) watch(die *point) {
	m.t.Helper()
	m.die = die
	m.tell(order{Do: "watch", Watch: true, Die: die})
}

// The runtime's calls.

// begin is RunPodSandbox.
func (m *rig) begin(s *sandbox) string {
	m.t.Helper()
	s.listed = true
	return m.tell(order{Do: "begin", Pod: s.Pod})
}

// attach is RunPodSandbox, and then CreateContainer.
func (m *rig) attach(s *sandbox) string {
	m.t.Helper()
	s.listed = true
	return m.tell(order{Do: "attach", Pod: s.Pod})
}

// stop is StopPodSandbox. The netns goes after it.
func (m *rig) stop(s *sandbox) {
	m.t.Helper()
	m.mustTell(order{Do: "detach", Sandbox: s.SandboxID})
}

// end takes the netns away.
func (m *rig) end(s *sandbox) {
	m.t.Helper()
	s.ended = true
	os.Remove(s.NetNS)
	s.ns.End()
}

// remove is RemovePodSandbox.
func (m *rig) remove(s *sandbox) {
	m.t.Helper()
	s.listed = false
	m.mustTell(order{Do: "forget", Sandbox: s.SandboxID})
}

func (m *rig) mustTell(o order) {
	m.t.Helper()
	if err := m.tell(o); err != "" {
		m.fatalf("%s: %s", o.Do, err)
	}
}

// until waits for a condition. Meanwhile the process may die and be followed.
func (m *rig) until(what string, ok func() bool, detail func() string) {
	m.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		switch {
		case m.p.isDead():
			m.restart()
		case ok():
			return
		}
		if time.Now().After(deadline) {
			m.fatalf("not seen within %v: %s; last:\n%s", patience, what, detail())
		}
	}
}

const patience = 40 * time.Second

// settle waits until nothing is done any more.
func (m *rig) settle() {
	m.t.Helper()
	m.until("no more steps", func() bool { return m.died || m.p.idle() > settled }, func() string { return "" })
}

const settled = 500 * time.Millisecond

// statuses returns what the process says of its pods, unless it is dead.
func (m *rig) statuses() (nodes []NodeStatus, ok bool) {
	r, ok := m.p.ask(order{Do: "status"})
	return r.Status, ok
}

// status returns what the process says of a pod; the zero value if it has none.
func (m *rig) status(uid string) NodeStatus {
	nodes, _ := m.statuses()
	for _, s := range nodes {
		if s.UID == uid {
			return s
		}
	}
	return NodeStatus{}
}

func (m *rig) awaitState(s *sandbox, want State) {
	m.t.Helper()
	var last NodeStatus
	m.until(fmt.Sprintf("%s is %s", s.Name, want), func() bool {
		last = m.status(s.UID)
		return last.State == want && last.SandboxID == s.SandboxID || m.overtaken()
	}, func() string { return fmt.Sprintf("%+v", last) })
}

// overtaken reports whether what the play waits for cannot come any more: the
// process has died, and something has happened since.
func (m *rig) overtaken() bool { return m.died && m.away != nil }

// fatalf ends the test with the logs of all processes.
func (m *rig) fatalf(format string, args ...any) {
	m.t.Helper()
	m.p.kill()
	logs := append(slices.Clone(m.logs), m.p.log.String())
	for i, log := range slices.Compact(logs) {
		m.t.Logf("log of process %d:\n%s", i+1, log)
	}
	m.t.Fatalf(format, args...)
}
