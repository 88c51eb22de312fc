// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"tailscale.com/net/netns"

	"tailscale-nri/engine/internal/hostnet"
	"tailscale-nri/engine/internal/podnet"
	"tailscale-nri/engine/internal/podstate"
	"tailscale-nri/engine/tailnet"
)

// Config is the configuration of an Engine.
type Config struct {
	// StateDir holds a directory for each pod. It is created, 0700.
	StateDir string
	// Tailnet lets nodes in, and out where it is a [tailnet.DeviceAPI] as well.
	Tailnet tailnet.Tailnet
	// Profiles are further tailnets, by Features.Profile.
	Profiles map[string]tailnet.Tailnet
	// Logger; nil discards.
	Logger *slog.Logger

	// AttachTimeout ends an attempt to bring a node up that has not led to
	// an address on ts0; the next one follows after a pause. 0 means one
	// minute.
	AttachTimeout time.Duration
	// Grace is how long a pod that has disappeared without a runtime event is
	// remembered, for its sandbox to be created again. 0 means one minute.
	Grace time.Duration
	// Claim is StateDir's, from [ClaimState]; it is the engine's from then on. Nil
	// is a claim of New's own, which waits 10 s for a process that is dying.
	Claim *Claim
	// Sockets keeps the links' sockets while this process is away; nil keeps
	// none.
	Sockets SocketStore

	// NoLocalDelivery has packets between two pods of this host go through
	// WireGuard, as those to any other peer do.
	NoLocalDelivery bool

	// ClusterRanges are the addresses of the cluster's nodes, pods and services.
	// What a pod begins to there stays on its other interfaces, also where the
	// tailnet has the same addresses.
	ClusterRanges []netip.Prefix
	// Services are those addresses of the cluster's Services that are known where
	// ClusterRanges does not name them. No subnet of the tailnet takes them away.
	Services netip.Prefix
	// Remark is the reason of nodes that run and have no other, such as that
	// ClusterRanges leaves something out. "" is none.
	Remark string

	// SweepAfter is how long a device of this cluster must not have been seen for it to
	// be deleted. Such a device is of a host that has died; devices of this host's pods
	// are not swept. 0 means seven days, a negative value that no device is deleted.
	SweepAfter time.Duration

	// Identities keep the devices of pods with [Features.Workload]; nil has none
	// come up.
	Identities IdentityStore
	// Host is this host's name among those that share Identities: its Kubernetes
	// node's. Its own host name would not do: two hosts of the same name would take
	// each other's identities.
	Host string

	// OnChange is called with each change of a node, one after the other and outside of
	// all locks. It must not block: further changes are kept in memory meanwhile. Nil
	// is not called.
	OnChange func(Change)

	// Names are the names of settings for reasons and the log.
	Names Names

	// Redact takes secrets out of a reason, which may quote what a control plane or an API
	// has said: others read it than the log's readers, the pod for one. Nil removes none.
	Redact func(string) string

	// Tests want them shorter; 0 means the usual.
	sweepFirst, sweepEvery, namePause time.Duration
	copyPatience, copyPause           time.Duration
	copySettled, expiryNotice         time.Duration
	conditionEvery, degradedAfter     time.Duration
	cutOffAfter, recheckEvery         time.Duration
	rebootTakes                       time.Duration
	leaseTime, renewEvery, waitEvery  time.Duration
	hostBoot                          string // as podnet.HostBoot says

	// onStep is told of every step before and after it is taken: see step.
	onStep func(s step, taken bool)
	// onBackend is told of every backend before it starts.
	onBackend func(podUID string, b *backend)
}

// SocketStore keeps open sockets beyond the end of this process.
type SocketStore = podnet.SocketStore

// Engine runs the nodes of one host's pods.
type Engine struct {
	cfg  Config
	log  *slog.Logger
	ctx  context.Context // of all nodes
	stop context.CancelFunc
	wg   sync.WaitGroup // all goroutines of nodes

	host     *hostnet.Monitor
	claim    *Claim          // of the state directory
	watch    *podnet.Watch   // of all links
	queue    queue           // of the nodes that start
	hostBoot string          // see podnet.HostBoot
	served   podstate.Served // of the goroutine that runs keepServed

	tailnets map[string]tailnetAccess // by profile, "" is Config.Tailnet's
	prepare  []func(context.Context)  // what they do ahead

	neighbours neighbours // the nodes that hand each other their pods' packets
	returning  inFlight   // nodes that an earlier process served, and this one not yet
	tally      *tally
	changes    *newsQueue // that Config.OnChange is to be told of

	mu    sync.Mutex
	nodes map[string]*node // by pod UID
	late  late
	// elsewhere are the devices of states that were set aside as copies.
	elsewhere map[string]bool
}

// New returns an Engine with the nodes that an earlier process recorded. They
// start with [Engine.Run].
func New(cfg Config) (*Engine, error) {
	if err := checkFeatures(); err != nil {
		return nil, err
	}
	if cfg.Tailnet == nil {
		return nil, errors.New("engine.Config.Tailnet is not set")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.AttachTimeout = cmp.Or(cfg.AttachTimeout, time.Minute)
	cfg.Grace = cmp.Or(cfg.Grace, time.Minute)
	cfg.Names.setDefaults()
	if cfg.Sockets == nil {
		cfg.Sockets = podnet.NoStore{}
	}
	if cfg.Claim == nil {
		ctx, cancel := context.WithTimeout(context.Background(), claimPatience)
		defer cancel()
		var err error
		if cfg.Claim, err = ClaimState(ctx, cfg.StateDir, nil); err != nil {
			return nil, err
		}
	}
	e, err := newEngine(cfg)
	if err != nil {
		return nil, errors.Join(err, cfg.Claim.Release())
	}
	return e, nil
}

// newEngine is New, with the state directory claimed.
func newEngine(cfg Config) (*Engine, error) {
	// No route of this program leads this process's own traffic into a tailnet, so
	// its sockets need no mark to stay out (net/netns, process-wide).
	netns.SetEnabled(false)
	// A backend asks for a place for logs that it then does not write, and
	// makes /var/lib/tailscale if it is told of none (logpolicy.LogsDir).
	if err := os.Setenv("TS_LOGS_DIR", cfg.StateDir); err != nil {
		return nil, fmt.Errorf("setting TS_LOGS_DIR: %w", err)
	}

	e := &Engine{cfg: cfg, log: cfg.Logger, claim: cfg.Claim, queue: newQueue(), tally: newTally(), changes: newNewsQueue(cfg.OnChange), nodes: map[string]*node{}, elsewhere: map[string]bool{}}
	var err error
	if e.hostBoot, err = podnet.HostBoot(); err != nil {
		return nil, fmt.Errorf("identifying this boot of the host: %w", err)
	}
	e.hostBoot = cmp.Or(cfg.hostBoot, e.hostBoot)
	e.served = podstate.LoadServed(cfg.StateDir, e.hostBoot)
	e.late.refused = map[string]NodeStatus{}
	e.openTailnets()
	e.useIdentities()
	e.ctx, e.stop = context.WithCancel(context.Background())
	if err := e.watchLinks(); err != nil {
		return nil, err
	}
	if e.host, err = hostnet.NewMonitor(bridge(e.log, newChatter(), nil)); err != nil {
		return nil, err
	}
	context.AfterFunc(e.ctx, e.host.Close)
	hostnet.ShareInterfaces(e.host, e.ctx.Done(), func(err error) {
		e.log.Warn("lost the shared watch of this host's interfaces: each node lists them itself until it is back", "err", err)
	})
	if err := podstate.CheckWritable(cfg.StateDir); err != nil {
		e.log.Error("the state directory cannot be written: the nodes that are in it are served, new pods are refused", "err", err)
	}
	records, err := podstate.LoadAll(cfg.StateDir, func(dir string, err error) {
		e.log.Error("a pod's record cannot be used", "dir", dir, "err", err)
	})
	if err != nil {
		return nil, err
	}
	for _, r := range podstate.LoadCopied(cfg.StateDir) {
		e.noteElsewhere(r)
	}
	var links []string
	for dir, r := range records {
		e.nodes[r.Pod.UID] = newNode(e, dir, r)
		links = append(links, r.Link)
	}
	cfg.Sockets.Retain(links)
	return e, nil
}

// Run resumes the recorded nodes and keeps all nodes up until ctx is done.
// Then it stops them, which leaves links, addresses and identities as they
// are, and returns nil. When it gives the state directory back, nothing of this
// engine acts any more: no goroutine of a node, no Attach, no Forget.
func (e *Engine) Run(ctx context.Context) error {
	e.resumeAll()
	for profile := range e.tailnets {
		e.spawn(func() { e.sweep(e.ctx, profile) })
		e.spawn(func() { e.recheck(e.ctx, profile) })
	}
	e.spawn(func() { e.keepServed(e.ctx) })
	if e.cfg.OnChange != nil {
		e.spawn(func() { e.changes.run(e.ctx) })
	}
	var ahead sync.WaitGroup
	for _, prepare := range e.prepare {
		ahead.Go(func() { prepare(e.ctx) })
	}
	<-ctx.Done()
	e.mu.Lock()
	e.stop()
	e.mu.Unlock()
	e.wg.Wait()
	e.tidy()
	err := e.claim.Release()
	ahead.Wait() // no other goroutine waits for that
	return err
}

// spawn starts a goroutine of a node, unless the engine has stopped. It
// reports whether it did.
func (e *Engine) spawn(f func()) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() != nil {
		return false
	}
	e.wg.Go(f)
	return true
}

// Detach stops the sandbox's node and returns at once. The identity stays for
// the pod's next sandbox. It returns nil for a sandbox that it does not know.
func (e *Engine) Detach(ctx context.Context, sandboxID string) error {
	if err := e.act(func() error {
		if n := e.find(sandboxID); n != nil {
			n.detach(sandboxID)
		}
		return nil
	}); err != nil {
		return err
	}
	return ctx.Err()
}

// Forget makes the sandbox's node leave the tailnet and forgets it, unless
// the pod has another sandbox by now. It returns at once, with the intent on
// disk if the disk takes it; the device is deleted in the background, for as
// long as it takes. It does nothing about a sandbox that it does not know.
func (e *Engine) Forget(ctx context.Context, sandboxID string) error {
	if err := e.act(func() error {
		if n := e.find(sandboxID); n != nil {
			n.forget(sandboxID)
		}
		return nil
	}); err != nil {
		return err
	}
	return ctx.Err()
}

// Suspect says that a container of the sandbox was removed. If the sandbox has
// ended without a runtime event, this stands for the event: the pod is forgotten. It
// returns at once; the engine looks by itself.
func (e *Engine) Suspect(sandboxID string) {
	if n := e.find(sandboxID); n != nil {
		e.spawn(func() { n.suspect(sandboxID) })
	}
}

// Status returns a snapshot of every node, and of every pod that was to get one
// late and has been refused, by namespace and pod.
func (e *Engine) Status() []NodeStatus {
	out := e.refused()
	for _, n := range e.snapshot() {
		out = append(out, n.snapshot())
	}
	slices.SortFunc(out, func(a, b NodeStatus) int { return byPod(&a, &b) })
	return out
}

func (e *Engine) snapshot() []*node {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Collect(maps.Values(e.nodes))
}

// nodeOf returns the pod's node, a new one if it has none.
func (e *Engine) nodeOf(pod Pod) *node {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := e.nodes[pod.UID]
	if n == nil {
		n = newNode(e, filepath.Join(e.cfg.StateDir, pod.UID), record{Pod: pod})
		e.nodes[pod.UID] = n
	}
	return n
}

// nodeOfUID returns the pod's node, nil if it has none.
func (e *Engine) nodeOfUID(podUID string) *node {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.nodes[podUID]
}

// find returns the node whose current sandbox it is, nil if there is none.
func (e *Engine) find(sandboxID string) *node {
	for _, n := range e.snapshot() {
		if n.sandboxID() == sandboxID {
			return n
		}
	}
	return nil
}

// drop removes the node from the map.
func (e *Engine) drop(n *node) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.nodes[n.uid] == n {
		delete(e.nodes, n.uid)
	}
}
