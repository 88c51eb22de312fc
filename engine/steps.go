// SPDX-License-Identifier: BSD-3-Clause

package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"tailscale.com/types/key"
	"tailscale.com/wgengine/router"

	"tailscale-nri/engine/internal/podnet"
	"tailscale-nri/engine/tailnet"
)

// step is one change to what outlives this process: the kernel's objects, what
// is on disk, or the tailnet. The engine takes all of them in this file, so
// that a test can kill it before and after each, and see that the next process
// ends where this one would have.
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
	return n.e.take(stepRecord, func() error { return n.rec.save(n.dir) })
}

// removeState removes all that is on disk of the node, the record last: keys
// without one are of a pod whose record was lost.
func (n *node) removeState() error {
	err := n.e.take(stepWipe, func() error { return removeAllBut(n.dir, recordFile) })
	if err != nil {
		return err
	}
	return n.e.take(stepRetire, func() error { return os.RemoveAll(n.dir) })
}

func removeAllBut(dir, name string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, entry := range entries {
		if entry.Name() != name {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, entry.Name())))
		}
	}
	return err
}

// ensureLink makes the record's link, unless it is there.
func (n *node) ensureLink(r record) (link *podnet.Link, err error) {
	n.serving.guarded.linking.Lock()
	defer n.serving.guarded.linking.Unlock()
	var fence *podnet.Router // see podnet.Router.Fence
	err = n.e.take(stepLink, func() error {
		link, err = podnet.Ensure(r.NetNS, r.Link)
		if err == nil && r.Pod.Features.ExitNode != "" {
			fence = n.newRouter(link, &r.Pod.Features, nil, nil)
			_, err = fence.Fence()
		}
		return err
	})
	if err == nil {
		n.setLink(link, fence)
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

// steppedTailnet takes each call of the tailnet's door as a step.
type steppedTailnet struct {
	door    tailnet.Tailnet
	e       *Engine
	profile string
}

// of has an error name the profile, if it has a name.
func (t steppedTailnet) of(err error) error {
	if err == nil || t.profile == "" {
		return err
	}
	return fmt.Errorf("profile %s: %w", t.profile, err)
}

func (t steppedTailnet) NewAuthKey(ctx context.Context, n tailnet.Node) (key string, err error) {
	err = t.e.take(stepMint, func() error {
		key, err = t.door.NewAuthKey(ctx, n)
		return err
	})
	return key, t.of(err)
}

func (t steppedTailnet) Delete(ctx context.Context, id string) error {
	return t.of(t.e.take(stepDelete, func() error { return t.door.Delete(ctx, id) }))
}

func (t steppedTailnet) Rename(ctx context.Context, id, name string) error {
	return t.of(t.e.take(stepRename, func() error { return t.door.Rename(ctx, id, name) }))
}

// The others change nothing.

func (t steppedTailnet) ControlURL() string { return t.door.ControlURL() }

func (t steppedTailnet) Devices(ctx context.Context) ([]tailnet.Device, error) {
	devices, err := t.door.Devices(ctx)
	return devices, t.of(err)
}

func (t steppedTailnet) Device(ctx context.Context, id string) (tailnet.Device, error) {
	d, err := t.door.Device(ctx, id)
	return d, t.of(err)
}

func (t steppedTailnet) LockKey(machine key.MachinePublic, chosenName bool) (key.NLPrivate, bool) {
	return t.door.LockKey(machine, chosenName)
}

func (t steppedTailnet) Ours(d tailnet.Device) (ours, chosenName bool) { return t.door.Ours(d) }

func (t steppedTailnet) RequestsTags() bool { return t.door.RequestsTags() }

func (t steppedTailnet) WrongTags(asked, granted []string) error {
	return t.of(t.door.WrongTags(asked, granted))
}

func (t steppedTailnet) Refusal(message string) error { return t.of(t.door.Refusal(message)) }
