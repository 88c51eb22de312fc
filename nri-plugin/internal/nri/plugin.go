// SPDX-License-Identifier: BSD-3-Clause

package nri

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"

	"tailscale-nri/engine"
	"tailscale-nri/nri-plugin/internal/metrics"
	"tailscale-nri/nri-plugin/internal/ocihook"
	"tailscale-nri/nri-plugin/internal/podspec"
)

// The stub finds hooks by type assertion: without these lines a wrong
// signature would unsubscribe a hook and nothing would say so.
var (
	_ stub.ConfigureInterface       = connection{}
	_ stub.SynchronizeInterface     = connection{}
	_ stub.RunPodInterface          = connection{}
	_ stub.StopPodInterface         = connection{}
	_ stub.RemovePodInterface       = connection{}
	_ stub.CreateContainerInterface = connection{}
	_ stub.RemoveContainerInterface = connection{}
)

// podSet has the methods of the engine that the plugin needs.
type podSet interface {
	Attach(ctx context.Context, pod engine.Pod) (created bool, err error)
	AttachEmpty(ctx context.Context, pod engine.Pod) error
	Detach(ctx context.Context, sandboxID string) error
	Forget(ctx context.Context, sandboxID string) error
	Serves(podUID, sandboxID string) bool
	Knows(podUID, sandboxID string) bool
	FeaturesOf(podUID, sandboxID string) (f engine.Features, ok bool)
	Sync(ctx context.Context, live []engine.Pod, ended []string) error
	Suspect(sandboxID string)
	Await(ctx context.Context, podUID string) error
	SocketDir(podUID string) (string, error)
}

const (
	// HookBudget is less than the 2 s after which the runtime treats a hook as if it had
	// succeeded: an error that is returned in time is worth more than another half
	// second.
	HookBudget = 1500 * time.Millisecond
	// slowHook is far above what local work takes; the runtime holds every other
	// pod of the host back for as long.
	slowHook = 500 * time.Millisecond
)

// Plugin translates the runtime's events into calls of the engine.
type Plugin struct {
	Pods     podSet
	Defaults podspec.Defaults
	Policies *podspec.Policies // over the defaults'
	Handlers []string          // known runtime handlers, see podspec.CheckHandler
	OwnUID   string            // of the pod that this process runs in, "" is not checked
	Resolver ocihook.Resolver  // nil makes no resolv.conf
	Hooks    *ocihook.Server
	Log      *slog.Logger
	Meters   *metrics.Meters // nil counts nothing

	Refused Refusals
}

// The runtime's contract, as containerd 2.4 keeps it:
//
// A hook has 2 s. One that takes longer costs the plugin its connection, and
// the pod goes on as if the hook had succeeded. All hooks of a host share one
// lock, so a slow hook delays every pod that starts or stops. Therefore each
// hook does local work only, and none waits for a network.
//
// RunPodSandbox comes after the CNI plugins and before any container. Its error fails the
// pod, kubectl describe shows the text, and Stop and Remove follow at once.
// StopPodSandbox comes while the netns still exists; RemovePodSandbox up to a minute
// later. Late and missing calls are normal: a pod that started while the plugin was away
// never gets RunPodSandbox, and after a restart of containerd neither Stop nor Remove
// comes for the pods before it, though RemoveContainer does. Synchronize, which comes on
// each connection, makes up for them.
//
// CreateContainer is the second chance: it comes for each container, init containers too,
// and its error keeps that container from being created, until the kubelet tries again. A
// pod that has started without the plugin gets its node there at the latest, before its
// containers run. Synchronize may be attaching it at the same time: the engine lets the
// two take turns, and the second finds nothing to do. RunPodSandbox only begins the link,
// and where the node has not completed it yet, that is done here. A pod whose link is whole
// costs a look-up, and what is about to end is not attached again.
//
// Calls may also come twice. The hooks of a closed connection may overlap those
// of the next.
//
// A connection must not be created again only to get the list. A registration waits for
// all hooks under way and delays the next, and containerd 2.4.2 hangs forever if one
// comes while it removes a sandbox that still has containers (internal/cri/server,
// sandbox_remove.go and container_remove.go each take the lock).

// Configure subscribes to all hooks here. The runtime's own configuration of
// plugins (/etc/nri/conf.d) goes only to those that it starts itself, as of NRI
// 0.12 (pkg/adaptation/plugin.go, newExternalPlugin). Should it ever come, it
// is refused rather than ignored.
func (c connection) Configure(ctx context.Context, config, runtime, version string) (api.EventMask, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if config != "" {
		return 0, errors.New("a configuration of this plugin by the runtime is not supported: remove it and set the environment of tailscale-nri instead")
	}
	c.runtime.Store(&runtimeName{runtime, version})
	return 0, nil
}

// Synchronize brings the engine in line with the sandboxes that exist. On an
// error the runtime closes the connection, and the next one tries again; it
// does not show the reason, so it is logged too.
//
// The list of a runtime that does not run this pod is not the list of this
// host's pods: acting on it would end all that is served.
func (c connection) Synchronize(ctx context.Context, sandboxes []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	if err := c.checkRuntime(sandboxes); err != nil {
		c.refuse(err)
		return nil, err
	}
	is := c.runtime.Load()
	c.Log.Info("registered with the container runtime", "runtime", is.name, "version", is.version)
	err := c.timed(ctx, c.Log, "Synchronize", func(ctx context.Context) error {
		live, ended := c.sort(sandboxes, containers)
		return c.Pods.Sync(ctx, live, ended)
	})
	if err != nil {
		c.Log.Warn("could not take over the runtime's list of pods", "err", err)
	}
	if ctx.Err() == nil {
		c.synchronized(err)
	}
	return nil, err
}

// RunPodSandbox begins an opted-in pod's link and starts its node, which comes up by itself.
func (p *Plugin) RunPodSandbox(ctx context.Context, sb *api.PodSandbox) error {
	return p.hook(ctx, "RunPodSandbox", sb, func(ctx context.Context) error {
		pod, in, err := p.podOf(sb)
		if err != nil || !in {
			return err
		}
		return p.Pods.AttachEmpty(ctx, pod)
	})
}

// StopPodSandbox ends the pod's node and keeps its identity. It does not ask
// whether the pod opted in: the engine knows what it serves, even if another
// version of this program would read the annotations in another way.
func (p *Plugin) StopPodSandbox(ctx context.Context, sb *api.PodSandbox) error {
	p.Refused.drop(sb.GetId())
	return p.hook(ctx, "StopPodSandbox", sb, func(ctx context.Context) error {
		return p.Pods.Detach(ctx, sb.GetId())
	})
}

// RemovePodSandbox ends the identity of the pod's node as well.
func (p *Plugin) RemovePodSandbox(ctx context.Context, sb *api.PodSandbox) error {
	return p.hook(ctx, "RemovePodSandbox", sb, func(ctx context.Context) error {
		return p.Pods.Forget(ctx, sb.GetId())
	})
}

// CreateContainer gives a pod its node, and its whole link, that should have them and has
// not. What RunPodSandbox would have refused is refused here, unless it has run already. A
// container of a pod that has its node then gets what the pod asks for: see adjust.
func (p *Plugin) CreateContainer(ctx context.Context, sb *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if start := time.Now(); p.leavesAlone(sb) {
		p.Meters.Hook("CreateContainer", metrics.HookResult(nil), time.Since(start))
		return nil, nil, nil
	}
	var out atomic.Pointer[api.ContainerAdjustment] // the hook may go on after its time
	err := p.hook(ctx, "CreateContainer", sb, func(ctx context.Context) error {
		in, err := p.attachMissed(ctx, sb, c)
		if err != nil || !in {
			return err
		}
		a, err := p.adjust(sb, c)
		out.Store(a)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return out.Load(), nil, nil
}

// leavesAlone reports whether the pod's containers are none of our business: it has not
// opted in, or it has its node and asks for nothing else. That is only looked up, so it
// needs no goroutine that may hang.
func (p *Plugin) leavesAlone(sb *api.PodSandbox) bool {
	if p.Pods.Serves(sb.GetUid(), sb.GetId()) {
		f, ok := p.Pods.FeaturesOf(sb.GetUid(), sb.GetId())
		return ok && !asksForContainers(f)
	}
	_, in, err := p.podOf(sb)
	return err == nil && !in
}

// attachMissed attaches a pod that was missed, and completes a link that was only begun.
// It reports whether the container's pod has a node.
func (p *Plugin) attachMissed(ctx context.Context, sb *api.PodSandbox, c *api.Container) (in bool, err error) {
	if p.Pods.Serves(sb.GetUid(), sb.GetId()) {
		return true, nil
	}
	pod, in, err := p.podOf(sb)
	if err != nil && p.Refused.ran(sb, c) {
		p.warnRan(sb, err)
		return false, nil
	}
	if err != nil || !in {
		return false, err
	}
	created, err := p.Pods.Attach(ctx, pod)
	if created {
		p.Meters.Late()
		podLogger(p.Log, sb).Info("attached when a container was to be created: the pod had started without its node")
	}
	return err == nil, err
}

// RemoveContainer is the only event at the end of a pod that is older than the
// runtime's last restart. It also comes for every other pod, and for one that
// goes on living: the engine finds out which, in its own time.
func (p *Plugin) RemoveContainer(_ context.Context, sb *api.PodSandbox, _ *api.Container) error {
	p.Pods.Suspect(sb.GetId())
	return nil
}

// podOf is podspec.From with what else has a pod refused, or left out where a rule
// alone would have it opt in. One that has its node keeps it, though its runtime
// handler is no longer known and the policy another.
func (p *Plugin) podOf(sb *api.PodSandbox) (engine.Pod, bool, error) {
	d := p.Defaults
	d.Policy, d.Served = cmp.Or(p.Policies.Load(), d.Policy), p.Pods.Knows(sb.GetUid(), sb.GetId())
	pod, in, err := podspec.From(sb, d)
	if d.Served && err != nil {
		// The engine goes by its record. What the pod asks for was good when it was
		// first attached, by another policy or to another version of this program.
		return p.recordedPod(sb), true, nil
	}
	if !in || d.Served {
		return pod, in, err
	}
	err = podspec.CheckHandler(sb, p.Handlers)
	if podspec.ByRule(sb) && (err != nil || p.OwnUID != "" && sb.GetUid() == p.OwnUID) {
		return engine.Pod{}, false, nil
	}
	return pod, err == nil, err
}

// recordedPod is the pod of a sandbox that has its node, with only what is known
// without reading its annotations.
func (p *Plugin) recordedPod(sb *api.PodSandbox) engine.Pod {
	netns, _ := podspec.NetNSOf(sb) // "" leads to no netns, and the error says so
	return engine.Pod{
		SandboxID: sb.GetId(), UID: sb.GetUid(), Namespace: sb.GetNamespace(), Name: sb.GetName(),
		NetNS: netns, PID: sb.GetPid(), Hostname: podspec.DefaultHostname(p.Defaults.Cluster, sb.GetNamespace(), sb.GetName()),
	}
}

// warnRan logs once that a pod goes on without a node: there is no caller to return
// an error to.
func (p *Plugin) warnRan(sb *api.PodSandbox, err error) {
	if p.Refused.Note(sb, err, true) {
		podLogger(p.Log, sb).Warn("this pod gets no tailnet node; it ran before this plugin could refuse it and goes on", "err", err)
	}
}

// sort translates the sandboxes that have not ended, and names those that
// have. One that should be refused was started without the plugin: that is logged once.
func (p *Plugin) sort(sandboxes []*api.PodSandbox, containers []*api.Container) (pods []engine.Pod, ended []string) {
	ran, seen := make(map[string]bool), make(map[string]bool)
	for _, c := range containers {
		ran[c.GetPodSandboxId()] = true
	}
	for _, sb := range sandboxes {
		if podspec.Gone(sb) {
			ended = append(ended, sb.GetId())
			continue
		}
		pod, in, err := p.podOf(sb)
		switch {
		case in:
			pods = append(pods, pod)
		case err != nil && ran[sb.GetId()]:
			seen[sb.GetId()] = true
			p.warnRan(sb, err)
		case err != nil:
			seen[sb.GetId()] = true
			if p.Refused.Note(sb, err, false) {
				podLogger(p.Log, sb).Warn("this pod gets no tailnet node, and no container", "err", err)
			}
		}
	}
	p.Refused.keep(seen)
	return pods, ended
}

// hook runs one pod's event and puts the pod's name to its error, once.
func (p *Plugin) hook(ctx context.Context, event string, sb *api.PodSandbox, do func(context.Context) error) error {
	log := podLogger(p.Log, sb)
	if err := p.timed(ctx, log, event, do); err != nil {
		if p.Refused.isNews(sb.GetUid(), err) {
			log.Warn("refused, the kubelet tries again", "event", event, "err", err)
		}
		return fmt.Errorf("tailscale-nri: pod %s/%s: %w", sb.GetNamespace(), sb.GetName(), err)
	}
	return nil
}

// budget is HookBudget, or less where the runtime waits for less: an answer at
// its own deadline would come too late every other time.
func budget(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return HookBudget
	}
	return min(HookBudget, time.Until(deadline)*4/5)
}

// timed runs an event within the budget and logs how long it took. What hangs,
// in the kernel or on a disk, goes on by itself; the runtime has its error in
// time, since it takes a late answer for a good one.
func (p *Plugin) timed(ctx context.Context, log *slog.Logger, event string, do func(context.Context) error) error {
	most := budget(ctx)
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	start := time.Now()
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = fmt.Errorf("not done within %v: %w", most, ctx.Err())
	}
	took, level := time.Since(start), slog.LevelDebug
	if took > slowHook {
		level = slog.LevelWarn
	}
	p.Meters.Hook(event, metrics.HookResult(err), took)
	log.Log(ctx, level, "hook done", "event", event, "took", took, "ok", err == nil)
	return err
}

// podLogger binds the pod's identity.
func podLogger(log *slog.Logger, sb *api.PodSandbox) *slog.Logger {
	return log.With("pod", sb.GetNamespace()+"/"+sb.GetName(), "uid", sb.GetUid(), "sandbox", shortID(sb.GetId()))
}

// shortID shortens a sandbox's ID for the log, as crictl does.
func shortID(id string) string { return id[:min(len(id), 12)] }
