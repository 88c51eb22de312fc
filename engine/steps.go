// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"

	"tailscale.com/types/key"
	"tailscale.com/wgengine/router"

	"tailscale-nri/engine/internal/podnet"
	"tailscale-nri/engine/internal/podstate"
	"tailscale-nri/engine/measure"
	"tailscale-nri/engine/tailnet"
)

// step is one change to what outlives this process: the kernel's objects, what
// is on disk, or the tailnet. Engine.take carries out all of them, so that a test
// can kill the process before and after each, and see that the next process ends
// where this one would have.
type step string

const (
	stepRecord    step = "write record"
	stepState     step = "write state"
	stepNetmap    step = "write netmap"
	stepWipe      step = "remove keys"
	stepRetire    step = "remove state"
	stepLink      step = "make link"
	stepUnlink    step = "remove link"
	stepAddresses step = "set addresses"
	stepMint      step = "mint key"
	stepDelete    step = "delete device"
	stepRename    step = "rename device"
	stepLogOut    step = "log out"
	stepIdentity  step = "write identity"
)

// take takes a step.
func (e *Engine) take(s step, f func() error) error {
	if e.cfg.onStep == nil {
		return f()
	}
	e.cfg.onStep(s, false)
	err := f()
	e.cfg.onStep(s, true)
	return err
}

// save writes the node's record. n.op is held.
func (n *node) save() error {
	return n.e.take(stepRecord, func() error {
		bytes, err := podstate.Save(n.dir, &n.rec)
		n.written.add(measure.RecordFile, bytes)
		return err
	})
}

// rewriteResolvConf writes the file that the pod's containers have.
func (n *node) rewriteResolvConf(data []byte) error {
	return n.e.take(stepRecord, func() error {
		bytes, err := podstate.RewriteFile(n.resolvConfPath(), data)
		n.written.add(measure.ResolvConfFile, bytes)
		return err
	})
}

// removeState removes all that is on disk of the node, the record last: keys
// without one are of a pod whose record was lost.
func (n *node) removeState() error {
	err := n.e.take(stepWipe, func() error { return podstate.RemoveAllButRecord(n.dir) })
	if err != nil {
		return err
	}
	return n.e.take(stepRetire, func() error { return os.RemoveAll(n.dir) })
}

// ensureLink makes the record's link, unless it is there.
func (n *node) ensureLink(r record) (*podnet.Link, error) {
	return n.makeLink(r, podnet.Ensure, nil)
}

// completeLink is ensureLink for a link that a session may have been opened on.
func (n *node) completeLink(r record) (*podnet.Link, error) {
	return n.makeLink(r, podnet.Ensure, n.serving.guarded.fenceOf)
}

// beginLink makes the record's link as far as it can without having others wait.
func (n *node) beginLink(r record) (*begunLink, error) {
	link, err := n.makeLink(r, podnet.Begin, nil)
	if err != nil {
		return nil, err
	}
	return &begunLink{link, r.Pod.SandboxID, make(chan struct{})}, nil
}

// linkMaker is podnet.Ensure or podnet.Begin.
type linkMaker func(ns podnet.Namespace, host string, found func(*podnet.Link)) (*podnet.Link, error)

// makeLink makes the record's link and guards it, unless the pod has another sandbox by
// now. A link that has its fence already, as fenceOf says, keeps it: a session shares what
// the fence has.
func (n *node) makeLink(r record, by linkMaker, fenceOf func(*podnet.Link) *podnet.Router) (link *podnet.Link, err error) {
	n.serving.guarded.linking.Lock()
	defer n.serving.guarded.linking.Unlock()
	if n.sandboxID() != r.Pod.SandboxID {
		return nil, podnet.ErrGone
	}
	var fence *podnet.Router // see podnet.Router.Fence
	err = n.e.take(stepLink, func() error {
		var made atomic.Bool
		link, err = by(r.NetNS, r.Link, func(l *podnet.Link) {
			n.e.watch.Add(l, func(c podnet.Change) {
				if made.Load() || c.OfIsolation() { // most others are by's own
					n.serving.guarded.note(c)
				}
			})
		})
		made.Store(true)
		if err != nil || r.Pod.Features.ExitNode == "" {
			return err
		}
		if fenceOf != nil {
			fence = fenceOf(link)
		}
		if fence == nil {
			fence = n.newRouter(link, &r.Pod.Features, nil, nil)
		}
		_, err = fence.Fence()
		return err
	})
	if err == nil {
		n.serving.guarded.setLink(link, fence)
	}
	return link, err
}

func (n *node) removeLink(name string) {
	n.e.watch.Remove(name)
	if err := n.e.take(stepUnlink, func() error { return podnet.Remove(name) }); err != nil {
		n.log().Error("removing the link", "link", name, "err", err)
	}
	n.e.cfg.Sockets.Drop(name)
}

// steppedRouter takes each change of what is in the pod's netns as a step.
type steppedRouter struct {
	router.Router
	e *Engine
}

func (r steppedRouter) Set(cfg *router.Config) error {
	return r.e.take(stepAddresses, func() error { return r.Router.Set(cfg) })
}

// steppedTailnet takes each change of a tailnet as a step. It embeds none, so that a
// method that the interface gets is written here as well, and found to be a step or not.
type steppedTailnet struct {
	inner tailnet.Tailnet
	profiled
}

// steppedAPI does the same for devices.
type steppedAPI struct {
	inner tailnet.DeviceAPI
	profiled
}

var (
	_ tailnet.Tailnet   = steppedTailnet{}
	_ tailnet.DeviceAPI = steppedAPI{}
)

// profiled is the engine's access to the tailnet of a profile.
type profiled struct {
	e       *Engine
	profile string
}

// of says in an error which tailnet it is about, if that is not the default one.
func (p profiled) of(err error) error {
	if err == nil || p.profile == "" {
		return err
	}
	return fmt.Errorf("in the tailnet of profile %s: %w", p.profile, err)
}

func (t steppedTailnet) NewAuthKey(ctx context.Context, n tailnet.Node) (key string, err error) {
	err = t.e.take(stepMint, func() error {
		key, err = t.inner.NewAuthKey(ctx, n)
		return err
	})
	return key, t.of(err)
}

func (a steppedAPI) Delete(ctx context.Context, id string) error {
	return a.of(a.e.take(stepDelete, func() error { return a.inner.Delete(ctx, id) }))
}

func (a steppedAPI) Rename(ctx context.Context, id, name string) error {
	return a.of(a.e.take(stepRename, func() error { return a.inner.Rename(ctx, id, name) }))
}

// The others change nothing.

func (t steppedTailnet) ControlURL() string { return t.inner.ControlURL() }

func (t steppedTailnet) RequestsTags() bool { return t.inner.RequestsTags() }

func (t steppedTailnet) WrongTags(asked, granted []string) error {
	return t.of(t.inner.WrongTags(asked, granted))
}

func (t steppedTailnet) Refusal(message string) error { return t.of(t.inner.Refusal(message)) }

func (t steppedTailnet) KeyRenewal() string { return t.inner.KeyRenewal() }

func (a steppedAPI) Devices(ctx context.Context) ([]tailnet.Device, error) {
	devices, err := a.inner.Devices(ctx)
	return devices, a.of(err)
}

func (a steppedAPI) Device(ctx context.Context, id string) (tailnet.Device, error) {
	d, err := a.inner.Device(ctx, id)
	return d, a.of(err)
}

func (a steppedAPI) LockKey(machine key.MachinePublic, chosenName bool) (key.NLPrivate, bool) {
	return a.inner.LockKey(machine, chosenName)
}

func (a steppedAPI) Ours(d tailnet.Device) (ours, chosenName bool) { return a.inner.Ours(d) }
